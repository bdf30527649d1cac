"""A call's arguments with guests' rows put in and dropped again, or with one half of the batch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .edge import Batched
from .guests import Entering, GuestRow
from .layout import Arguments, Step


def rows_in(batched: Batched, arguments: Arguments) -> int:
    """How many rows a call has."""
    return len(arguments[batched.latents])


def widened(
    batched: Batched, arguments: Arguments, guests: Sequence[GuestRow], step: Step, conditional: Sequence[bool]
) -> Arguments:
    """The arguments with the guests' rows first in each half of the batch.

    `conditional` says of each half whether it carries the prompts, or the negative ones.
    """
    wide, count, halves = dict(arguments), rows_in(batched, arguments), len(conditional)
    roles = {batched.latents: "latents", batched.text: "text", batched.pooled: "pooled"}
    now = [Entering(step, said) for said in conditional]
    for name in batched.names:
        value = arguments.get(name)
        if value is None:
            continue
        parts = []
        for half, entering in zip(_halves(value, halves), now, strict=True):
            rows = _rows(half)
            fronts = [guest.put(roles.get(name, name), rows, entering) for guest in guests]
            parts += [*fronts, half] if isinstance(half, Tensor) else [*(x[0] for x in fronts), *half]
        wide[name] = torch.cat(parts) if isinstance(value, Tensor) else type(value)(parts)

    def beside(name: str, value: Tensor) -> Tensor:
        parts = [
            part for half in value.chunk(halves) for part in (*(g.residual(name, half.split(1)) for g in guests), half)
        ]
        return torch.cat(parts)

    for name in batched.residuals:
        if arguments.get(name) is not None:
            wide[name] = mapped(name, arguments[name], count, beside)
    return wide


def one_half(batched: Batched, arguments: Arguments, half: int, halves: int) -> Arguments:
    """The arguments of one half of the batch alone."""
    part, count = dict(arguments), rows_in(batched, arguments)
    if halves == 1:
        return part
    for name in batched.names:
        if arguments.get(name) is not None:
            part[name] = _halves(arguments[name], halves)[half]
    for name in batched.residuals:
        if arguments.get(name) is not None:
            part[name] = mapped(name, arguments[name], count, lambda _, value: value.chunk(halves)[half])
    return part


def mapped(name: str, value: Any, rows: int, change: Callable[[str, Tensor], Tensor]) -> Any:
    """`value` with every tensor in it that has so many rows changed; `change` gets the name that it stands under."""
    if isinstance(value, Tensor):
        return change(name, value) if value.ndim and len(value) == rows else value
    if isinstance(value, Mapping):
        return {key: mapped(key, item, rows, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(name, item, rows, change) for item in value)
    return value


def predicted(output: Any) -> Tensor:
    """The prediction in a transformer's output, a tuple or an object."""
    rows: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return rows


def replaced(output: Any, rows: Tensor) -> Any:
    """The output with another prediction."""
    if isinstance(output, tuple):
        return (rows, *output[1:])
    output.sample = rows
    return output


def narrowed(output: Any, guests: int, halves: int) -> Any:
    """The transformer's output without the guests' rows."""
    if not guests:
        return output
    return replaced(output, torch.cat([half[guests:] for half in predicted(output).chunk(halves)]))


def _halves(value: Any, halves: int) -> list[Any]:
    if isinstance(value, Tensor):
        return list(value.chunk(halves)) if halves > 1 else [value]
    size = len(value) // halves
    return [value[i * size : (i + 1) * size] for i in range(halves)]


def _rows(half: Any) -> Sequence[Tensor]:
    return half.split(1) if isinstance(half, Tensor) else [x[None] for x in half]
