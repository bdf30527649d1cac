"""What an evaluation asks of a model: prompts with their truth, and true renders of the same prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from attnctrl.embedded.canvas import Array
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.scenes import (
    PAIRED,
    RECOLORABLE,
    RELATIONS,
    Scene,
    article,
    held_out,
    render,
    sample,
)
from attnctrl.embedded.styles import STYLES

STYLE_CHOICES = tuple(name for name in PAIRED.styles if STYLES[name].named)
_COLORED, _PAIRS, _THREES, _HELD, _SHIFTED = 48, 64, 32, 4, 48


@dataclass(frozen=True)
class Case:
    """One prompt: one subject, or two or three in a relation, a style, perhaps colors; `seed` draws it.

    `colors` has one for each subject, None where it is not asked, or is empty.
    """

    subjects: tuple[str, ...]
    style: str
    seed: int
    relation: str | None = None
    colors: tuple[str | None, ...] = ()

    @property
    def prompt(self) -> str:
        """As the world's captions say it."""
        colors = self.colors or (None,) * len(self.subjects)
        nouns = [f"{color} {name}" if color else name for name, color in zip(self.subjects, colors, strict=True)]
        return f" {self.relation} ".join(article(noun) for noun in nouns) + f", {self.style}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height: three objects stand in a panorama."""
        if len(self.subjects) < 3:
            return 64, 64
        return (128, 32) if self.relation in RELATIONS[:2] else (32, 128)


def suite(per: int, seed: int) -> dict[str, list[Case]]:
    """The cases by group.

    `trained` has every shown (subject, style) pair `per` times and `held out` every held-out pair 4 * `per` times;
    `color` has 48, `relation` and `relation, colors` (each object with its own) 64, and `three` 32 cases times `per`,
    of shown pairs. `shifted` is a part of `trained`, to be drawn at shifted positions.
    """
    rng = np.random.default_rng(seed)
    seeds = iter(rng.integers(2**31, size=100_000).tolist())
    pairs = [(subject, style) for style in STYLE_CHOICES for subject in PAIRED.subjects]
    shown = [pair for pair in pairs if not held_out(*pair)]
    held = [pair for pair in pairs if held_out(*pair)]
    trained = [Case((subject,), style, next(seeds)) for _ in range(per) for subject, style in shown]
    colorable = [pair for pair in shown if STYLES[pair[1]].colors and pair[0] in RECOLORABLE]
    color = [
        Case((subject,), style, next(seeds), colors=(list(COLORS)[i % len(COLORS)],))
        for i, (subject, style) in enumerate(_chosen(rng, colorable, _COLORED * per))
    ]
    relation = [_related(rng, shown, STYLE_CHOICES, i, 2, next(seeds)) for i in range(_PAIRS * per)]
    painted = tuple(name for name in STYLE_CHOICES if STYLES[name].colors)
    colored = []
    for i in range(_PAIRS * per):
        case = _related(rng, colorable, painted, i, 2, next(seeds))
        colors = tuple(str(name) for name in rng.choice(list(COLORS), 2, replace=False))
        colored.append(replace(case, colors=colors))
    three = [_related(rng, shown, STYLE_CHOICES, i, 3, next(seeds)) for i in range(_THREES * per)]
    order = rng.permutation(len(trained))[: _SHIFTED * per]
    return {
        "trained": trained,
        "held out": [Case((subject,), style, next(seeds)) for _ in range(_HELD * per) for subject, style in held],
        "color": color,
        "relation": relation,
        "relation, colors": colored,
        "three": three,
        "shifted": [trained[i] for i in sorted(order)],
    }


def _related(
    rng: np.random.Generator, pairs: list[tuple[str, str]], styles: tuple[str, ...], i: int, count: int, seed: int
) -> Case:
    """Case number `i` of a group: styles and relations in turn, different subjects."""
    style = styles[i % len(styles)]
    known = [subject for subject, name in pairs if name == style]
    subjects = tuple(str(name) for name in rng.choice(known, count, replace=False))
    return Case(subjects, style, seed, RELATIONS[i // 2 % len(RELATIONS)])


def _chosen(rng: np.random.Generator, pairs: list[tuple[str, str]], count: int) -> Iterable[tuple[str, str]]:
    return (pairs[i] for i in rng.choice(len(pairs), count, replace=count > len(pairs)))


def true_picture(case: Case, artwork: dict[str, Array]) -> Array:
    """The world's own picture of a case, all that the prompt leaves open drawn by its seed: uint8 [H, W, 3]."""
    picture: Array = render(true_scene(case), artwork).image
    return picture


def true_scene(case: Case) -> Scene:
    """The scene of `true_picture`."""
    pairs, threes = float(case.relation is not None), float(len(case.subjects) > 2)
    world = replace(
        PAIRED, styles=(case.style,), shapes=((case.size, 1.0),), pairs=pairs, threes=threes, backgrounds=0.0
    )
    rng = np.random.default_rng(case.seed)
    scene = sample(rng, world)
    while scene.relation != case.relation or len(scene.objects) != len(case.subjects):
        scene = sample(rng, world)
    colors = case.colors or (None,) * len(case.subjects)
    objects = tuple(
        replace(thing, subject=subject, color=color)
        for thing, subject, color in zip(scene.objects, case.subjects, colors, strict=True)
    )
    return replace(scene, objects=objects)
