"""What a pipeline's solver was given at each evaluation of the transformer, and where a control acted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctrl import Control, attached


@dataclass(frozen=True)
class Evaluation:
    """One call of `scheduler.step`: the latents, their noise level in [0, 1] and the velocity, after CFG."""

    latents: Tensor
    sigma: float
    velocity: Tensor


@contextmanager
def evaluations(pipe: Any) -> Iterator[list[Evaluation]]:
    """The evaluations of the runs within, in order."""
    seen: list[Evaluation] = []
    stock = pipe.scheduler.step

    def step(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(Evaluation(sample.clone(), float(timestep) / 1000, model_output.clone()))
        return stock(model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler.step = step
    try:
        yield seen
    finally:
        del pipe.scheduler.step


def pairs(
    pipe: Any, control: Control | Sequence[Control], run: Callable[..., Any]
) -> list[tuple[Evaluation, Evaluation]]:
    """Each evaluation of run() under the control, with the stock model's at the same latents.

    `run(callback_on_step_end=...)` is the same call of `pipe` every time.
    """
    with evaluations(pipe) as ours, attached(pipe, control):
        run()

    def follow(_: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": ours[index + 1].latents.to(tensors["latents"].dtype)} if index + 1 < len(ours) else {}

    with evaluations(pipe) as stock:
        run(callback_on_step_end=follow)
    assert len(ours) == len(stock)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, stock, strict=True))
    return list(zip(ours, stock, strict=True))


def acting(pipe: Any, control: Control | Sequence[Control], run: Callable[..., Any]) -> list[bool]:
    """At which evaluations of run() the velocity is not the stock model's, bit for bit."""
    return [not torch.equal(a.velocity, b.velocity) for a, b in pairs(pipe, control, run)]
