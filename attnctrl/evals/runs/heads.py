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


def prompt_sets(prompts: Sequence[str], repeats: int, batch_size: int) -> tuple[StyleSet, ...]:
    """The prompts in batches, as often as asked; nothing leads in them. ControlError for none."""
    if repeats < 1 or batch_size < 2:
        raise ControlError(f"repeats {repeats}, batch size {batch_size}: draw at least once, and two at a time")
    parts = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    return tuple(
        StyleSet(id=f"prompts-{number + 1}-{repeat + 1}", prompts=tuple(part))
        for repeat in range(repeats)
        for number, part in enumerate(parts)
    )
