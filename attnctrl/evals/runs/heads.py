"""Heads as arms of a run: presets or listed heads, and random sets of as many beside each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ControlError
from ...pipelines.presets import preset_of
from ...where import Where
from ..heads.check import random_texts
from ..heads.drawing import heads_of, pool
from .arms import PLAIN, Arm
from .sets import StyleSet


def head_arms(
    pipe: Any, model: str, texts: Sequence[str], random_sets: int, seed: int, strength: float | None, u: float | None
) -> tuple[Arm, ...]:
    """Plain, every named set of heads, and its random ones (a series of their own); ControlError for unknown heads."""
    if random_sets < 0:
        raise ControlError(f"{random_sets} random sets; give 0 or more")
    found = [Arm(name=PLAIN, series=PLAIN)]
    every = pool(pipe, Where())
    for text in texts:
        preset = preset_of(text, model, pipe, strength, u)
        name = preset.name if preset.name != "own" else preset.heads
        if any(arm.name == name for arm in found):
            raise ControlError(f"the heads {name} are given twice")
        found.append(Arm(name=name, control=(preset.control(),), series=name))
        for number, heads in enumerate(random_texts(every, len(heads_of(preset.heads)), random_sets, seed), 1):
            control = preset.model_copy(update={"heads": heads}).control()
            found.append(Arm(name=f"{name} random {number}", control=(control,), series=f"{name} random"))
    return tuple(found)


def prompt_sets(prompts: Sequence[str], repeats: int) -> tuple[StyleSet, ...]:
    """Every prompt a set of its own, so that intervals are over pictures, as often as asked; ControlError for none."""
    if repeats < 1:
        raise ControlError(f"{repeats} repeats; draw every prompt at least once")
    return tuple(
        StyleSet(id=f"prompt-{number}-{repeat}", prompts=(prompt,))
        for repeat in range(1, repeats + 1)
        for number, prompt in enumerate(prompts, 1)
    )
