"""What a set of heads does to pictures that no search has seen, beside random sets of as many heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...embedded import intervals
from ...pipelines.generate import check_size
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.presets import Measured
from ..objectives import Objective
from .drawing import Drawing, Head, Shot, heads_of, text_of

Pairs = Sequence[tuple[str, int]]


def effect(
    pipe: ControlledPipeline,
    heads: str,
    objective: Objective,
    pairs: Pairs,
    drawing: Drawing,
    among: Sequence[Head],
    random_sets: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """The paired effect of `heads` on held-out pairs of prompt and seed, and that of random sets drawn from `among`."""
    check_size(pipe, drawing.height, drawing.width)
    size = len(heads_of(heads))
    sets = ["", heads, *random_texts(among, size, random_sets, seed)]
    scores = {}
    for i, text in enumerate(sets):
        scores[text] = _scores(pipe, text, objective, pairs, drawing)
        if progress:
            progress(i + 1, len(sets))
    gaps = {text: scores[text] - scores[""] for text in sets[1:]}
    others = [float(gaps[text].mean()) for text in sets[2:]]
    return Measured(
        objective=objective.name,
        pictures=len(pairs),
        plain=round(float(scores[""].mean()), 6),
        guided=round(float(scores[heads].mean()), 6),
        difference=_rounded(gaps[heads]),
        random_heads=_rounded(np.array(others)) if others else None,
    )


def random_texts(among: Sequence[Head], size: int, count: int, seed: int) -> list[str]:
    """Seeded random sets of so many heads."""
    rng = np.random.default_rng(seed)
    return [text_of([among[i] for i in rng.choice(len(among), size, replace=False)]) for _ in range(count)]


def _scores(pipe: ControlledPipeline, heads: str, objective: Objective, pairs: Pairs, drawing: Drawing) -> np.ndarray:
    shots = [Shot(heads, prompt, seed) for prompt, seed in pairs]
    values: list[float] = []
    for batch in drawing.batches(shots):
        values += objective(drawing(pipe, batch), [shot.prompt for shot in batch])
    return np.array(values)


def _rounded(values: np.ndarray) -> tuple[float, float, float]:
    mean, low, high = (round(float(x), 6) for x in intervals.mean(values))
    return mean, low, high
