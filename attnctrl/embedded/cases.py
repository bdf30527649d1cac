"""What an evaluation asks of a model: prompts with their truth, and true renders of the same prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from attnctrl.embedded.canvas import Array
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.scenes import (
    RECOLORABLE,
    RELATIONS,
    WIDER,
    article,
    held_out,
    render,
    sample,
)
from attnctrl.embedded.styles import STYLES

STYLE_CHOICES = tuple(name for name in WIDER.styles if STYLES[name].named)
_COLORED, _PAIRS, _HELD, _SHIFTED = 48, 64, 4, 48


@dataclass(frozen=True)
class Case:
    """One prompt: one subject or two in a relation, a style, perhaps the first subject's color; `seed` draws it."""

    subjects: tuple[str, ...]
    style: str
    seed: int
    relation: str | None = None
    color: str | None = None

    @property
    def prompt(self) -> str:
        """As the world's captions say it."""
        first = article(f"{self.color} {self.subjects[0]}" if self.color else self.subjects[0])
        second = f" {self.relation} {article(self.subjects[1])}" if self.relation else ""
        return f"{first}{second}, {self.style}"


def suite(per: int, seed: int) -> dict[str, list[Case]]:
    """The cases by group.

    `trained` has every shown (subject, style) pair `per` times and `held out` every held-out pair 4 * `per` times;
    `color` has 48 and `relation` 64 cases times `per`, of shown pairs. `shifted` is a part of `trained`, to be drawn
    at shifted positions.
    """
    rng = np.random.default_rng(seed)
    seeds = iter(rng.integers(2**31, size=100_000).tolist())
    pairs = [(subject, style) for style in STYLE_CHOICES for subject in WIDER.subjects]
    shown = [pair for pair in pairs if not held_out(*pair)]
    held = [pair for pair in pairs if held_out(*pair)]
    trained = [Case((subject,), style, next(seeds)) for _ in range(per) for subject, style in shown]
    colorable = [pair for pair in shown if STYLES[pair[1]].colors and pair[0] in RECOLORABLE]
    color = [
        Case((subject,), style, next(seeds), color=list(COLORS)[i % len(COLORS)])
        for i, (subject, style) in enumerate(_chosen(rng, colorable, _COLORED * per))
    ]
    relation = []
    for i in range(_PAIRS * per):
        style = STYLE_CHOICES[i % len(STYLE_CHOICES)]
        known = [subject for subject, name in shown if name == style]
        first, second = (str(name) for name in rng.choice(known, 2, replace=False))
        relation.append(Case((first, second), style, next(seeds), relation=RELATIONS[i // 2 % len(RELATIONS)]))
    order = rng.permutation(len(trained))[: _SHIFTED * per]
    return {
        "trained": trained,
        "held out": [Case((subject,), style, next(seeds)) for _ in range(_HELD * per) for subject, style in held],
        "color": color,
        "relation": relation,
        "shifted": [trained[i] for i in sorted(order)],
    }


def _chosen(rng: np.random.Generator, pairs: list[tuple[str, str]], count: int) -> Iterable[tuple[str, str]]:
    return (pairs[i] for i in rng.choice(len(pairs), count, replace=count > len(pairs)))


def true_picture(case: Case, artwork: dict[str, Array]) -> Array:
    """The world's own picture of a case, all that the prompt leaves open drawn by its seed: uint8 [64, 64, 3]."""
    pairs, square = float(case.relation is not None), (((64, 64), 1.0),)
    world = replace(WIDER, styles=(case.style,), shapes=square, pairs=pairs, backgrounds=0.0)
    rng = np.random.default_rng(case.seed)
    scene = sample(rng, world)
    while scene.relation != case.relation:
        scene = sample(rng, world)
    colors = (case.color, *[None] * len(case.subjects))
    objects = tuple(
        replace(thing, subject=subject, color=color)
        for thing, subject, color in zip(scene.objects, case.subjects, colors, strict=False)
    )
    picture: Array = render(replace(scene, objects=objects), artwork).image
    return picture
