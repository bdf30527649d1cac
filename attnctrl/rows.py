"""Batch rows that a session adds: reference pictures, and copies of a row; put in, moved along, and dropped again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import Arguments

TEXTS = ("encoder_hidden_states", "pooled_projections")
BATCHED = ("hidden_states", *TEXTS, "timestep", "guidance")
RESIDUALS = (
    "controlnet_block_samples",
    "controlnet_single_block_samples",
    "block_controlnet_hidden_states",
    "joint_attention_kwargs",
)


@dataclass(frozen=True)
class PictureRow:
    """A reference picture as the transformer takes it: clean latent, its one fixed noise, and its text, all [1, ...].

    `odds` multiplies sigma / (1 - sigma), the odds of noise: 1 is the step's own level.
    """

    latent: Tensor
    noise: Tensor
    text: Tensor
    pooled: Tensor
    odds: float = 1.0

    def at(self, sigma: Tensor) -> Tensor:
        """The latent at noise level sigma: sigma * noise + (1 - sigma) * latent."""
        sigma = sigma.to(self.latent.device)
        if self.odds != 1:
            sigma = self.odds * sigma / (1 - sigma + self.odds * sigma)
        return (sigma * self.noise + (1 - sigma) * self.latent).to(self.latent.dtype)

    def put(self, name: str, half: Tensor, sigma: Tensor, conditional: bool) -> Tensor:
        """Its row of one batched argument. Condition tokens and channels are the first row's, the negative text too."""
        if name == "hidden_states":
            latent = self.at(sigma)
            row = half[:1].clone()
            row[tuple(slice(0, size) for size in latent.shape)] = latent
            return row
        if conditional and name in TEXTS:
            return self.text if name == TEXTS[0] else self.pooled
        return half[:1]


@dataclass(frozen=True)
class CopyRow:
    """A second copy of row `member` of each half of the batch."""

    member: int

    def put(self, name: str, half: Tensor, sigma: Tensor, conditional: bool) -> Tensor:
        """Its row of one batched argument."""
        return half[self.member : self.member + 1]


@dataclass(frozen=True)
class OpposedRow(CopyRow):
    """A copy of row `member` that reads other `text` [1, S_text, C]; its pooled text, which modulates images, stays."""

    text: Tensor

    def put(self, name: str, half: Tensor, sigma: Tensor, conditional: bool) -> Tensor:
        """Its row of one batched argument."""
        return self.text if name == TEXTS[0] else super().put(name, half, sigma, conditional)


AddedRow = PictureRow | CopyRow


def widened(
    arguments: Arguments, rows: Sequence[AddedRow], sigma: Tensor, conditional: Sequence[bool], batch: int
) -> Arguments:
    """The arguments with the added rows first in each half of the batch; pictures get no ControlNet residuals.

    `conditional` says of each half whether it carries the prompts, or the negative ones.
    """
    wide = dict(arguments)
    for name in BATCHED:
        value = arguments.get(name)
        if value is not None:
            halves = value.chunk(len(conditional)) if len(conditional) > 1 else (value,)
            parts = [
                part
                for half, said in zip(halves, conditional, strict=True)
                for part in (*(row.put(name, half, sigma, said) for row in rows), half)
            ]
            wide[name] = torch.cat(parts)
    for name in RESIDUALS:
        if arguments.get(name) is not None:
            wide[name] = mapped(arguments[name], batch, lambda value: _padded(value, rows, len(conditional)))
    return wide


def one_half(arguments: Arguments, half: int, halves: int, batch: int) -> Arguments:
    """The arguments of one half of the batch alone."""
    if halves == 1:
        return dict(arguments)
    part = dict(arguments)
    for name in BATCHED:
        if arguments.get(name) is not None:
            part[name] = arguments[name].chunk(halves)[half]
    for name in RESIDUALS:
        if arguments.get(name) is not None:
            part[name] = mapped(arguments[name], batch, lambda value: value.chunk(halves)[half])
    return part


def mapped(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it that has a row per picture changed."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: mapped(item, batch, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, batch, change) for item in value)
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


def narrowed(output: Any, rows: int, halves: int) -> Any:
    """The transformer's output without the added rows."""
    return replaced(output, torch.cat([half[rows:] for half in predicted(output).chunk(halves)]))


def reversed_odds(scheduler: Any, tokens: int) -> float:
    """By what the odds of noise change when the schedule's shift mu is turned into -mu: exp(-2 mu) (FreeCus)."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0)) ** -2
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = base + (top - base) * (tokens - low) / (high - low)
    return math.exp(-2 * mu)


def _padded(value: Tensor, rows: Sequence[AddedRow], halves: int) -> Tensor:
    """With rows added: zeros for pictures, copies for copies."""
    parts = []
    for half in value.chunk(halves):
        fronts = [half[r.member : r.member + 1] if isinstance(r, CopyRow) else half[:1] * 0 for r in rows]
        parts += [*fronts, half]
    return torch.cat(parts)
