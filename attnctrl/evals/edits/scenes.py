"""True pictures of the embedded world with words whose masks are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...embedded.canvas import Array
from ...embedded.cases import STYLE_CHOICES, Case, true_scene
from ...embedded.colors import COLORS
from ...embedded.scenery import BACKGROUNDS
from ...embedded.scenes import PAIRED, RECOLORABLE, RELATIONS, held_out, render
from ...embedded.styles import STYLES

PAINTED = tuple(name for name in STYLE_CHOICES if STYLES[name].colors)
Kind = str
OUTSIDE = "all but the subject"
KINDS: tuple[Kind, ...] = ("subject", "color", "color and subject", OUTSIDE, "background", "style", "subject of two")
"""Kinds of words. A color's mask is its subject's, a background's all but the objects, a style's the whole frame.

OUTSIDE is what the words of a subject leave: the region of an edit of the background."""


@dataclass(frozen=True)
class Asked:
    """A word or phrase of a scene's prompt: its kind, and the numbers of the objects that it means."""

    kind: Kind
    words: str
    objects: tuple[int, ...] = ()


@dataclass(frozen=True)
class Known:
    """A scene: its case, backdrop and words."""

    case: Case
    background: str | None
    words: tuple[Asked, ...]

    @property
    def prompt(self) -> str:
        """As the world's captions say it."""
        said, style = self.case.prompt.rsplit(", ", 1)
        return f"{said} on {BACKGROUNDS[self.background]}, {style}" if self.background else self.case.prompt

    def drawn(self, artwork: Mapping[str, Array]) -> tuple[Array, list[Array]]:
        """The true picture, uint8 [H, W, 3], and each word's true mask, bool [H, W]."""
        picture = render(replace(true_scene(self.case), background=self.background), dict(artwork))
        things = picture.masks > 0.5
        return picture.image, [_mask(one, things) for one in self.words]


def scenes_of(count: int, seed: int) -> tuple[Known, ...]:
    """So many single objects, every second before a backdrop, and as many pairs; half of the colors are named."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        style = PAINTED[number % len(PAINTED)]
        name, other = _subjects(rng, style)
        color = str(rng.choice(list(COLORS)))
        backdrop = str(rng.choice(list(BACKGROUNDS))) if number % 2 else None
        said = {"subject": name, "color": color, "color and subject": f"{color} {name}"}
        words = [*(Asked(kind, text, (0,)) for kind, text in said.items()), Asked("style", style)]
        if backdrop:
            words += [Asked(OUTSIDE, name), Asked("background", backdrop)]
        case = Case((name,), style, int(rng.integers(2**31)), colors=(color,))
        found.append(Known(case, backdrop, tuple(words)))
        pair = Case((name, other), style, int(rng.integers(2**31)), RELATIONS[number % 4])
        found.append(
            Known(pair, None, tuple(Asked("subject of two", one, (i,)) for i, one in enumerate((name, other))))
        )
    return tuple(found)


def _subjects(rng: np.random.Generator, style: str) -> tuple[str, str]:
    known = [name for name in PAIRED.subjects if name in RECOLORABLE and not held_out(name, style)]
    first, second = rng.choice(known, 2, replace=False)
    return str(first), str(second)


def _mask(one: Asked, things: Array) -> Array:
    if one.kind == "style":
        return np.ones(things.shape[1:], bool)
    if one.kind in ("background", OUTSIDE):
        return np.asarray(~things.any(0))
    return np.asarray(things[list(one.objects)].any(0))
