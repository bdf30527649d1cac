"""Batch rows that controls bring: how each is made, what it puts into every argument, where it stands."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ControlError
from .layout import Arguments, Layout, Step

if TYPE_CHECKING:
    from torch import Tensor

    from .host import Host
    from .reference import Reference

OPEN = frozenset({"attention_mask"})
"""Residual arguments in which a row of its own sees everything, rather than nothing."""


@dataclass(frozen=True)
class Entering:
    """One half of one call, as a guest's row sees it; `conditional`: whether the half carries the prompts."""

    step: Step
    conditional: bool


class GuestRow(ABC):
    """A guest's row in one run: what it puts into every argument. `rows` are the half's own, [1, ...] each."""

    @abstractmethod
    def put(self, role: str, rows: Sequence[Tensor], now: Entering) -> Tensor:
        """Its row [1, ...] of a batched argument; `role` is `latents`, `text`, `pooled`, or the argument's name."""

    def residual(self, name: str, rows: Sequence[Tensor]) -> Tensor:
        """Its row of a residual argument, found under `name`: zeros, and all to see in a mask."""
        import torch

        blank = torch.zeros_like(rows[0])
        return ~blank if name in OPEN and blank.dtype == torch.bool else blank


class Guest(ABC):
    """A row that a control asks for, by data; equal keys are one row. `shift`: image grids an axis by which it stands
    away where positions are additive, None where all pictures stand."""

    shift: tuple[float, ...] | None = None

    @property
    def follows(self) -> int:
        """The picture of its half that it is treated like, where pictures are treated apart."""
        return 0

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """By which the row is found again, whoever asks for it."""

    @abstractmethod
    def enter(self, host: Host, arguments: Arguments, layout: Layout) -> GuestRow:
        """The row for a run that begins with this call."""


@dataclass(frozen=True, eq=False)
class PictureGuest(Guest):
    """A picture to follow, noised to each step's level, with its caption."""

    reference: Reference
    shift: tuple[float, ...] | None = None

    @property
    def key(self) -> Hashable:
        """The very reference, where it stands."""
        return "picture", id(self.reference), self.shift

    def enter(self, host: Host, arguments: Arguments, layout: Layout) -> PictureRow:
        """Encode the picture at the size of this call, and its caption at this call's text length."""
        import torch

        reference, batched = self.reference, host.edge.batched
        hidden = arguments[batched.latents]
        latent = host.encoded_picture(reference.picture, arguments, layout)
        text, pooled = host.encoded_prompt(reference.caption, arguments)
        if any(a > b for a, b in zip(latent.shape[1:], hidden[:1].shape[1:], strict=True)):
            shapes = " and ".join(" x ".join(str(n) for n in x.shape[1:]) for x in (latent, hidden))
            raise ControlError(
                f"a picture reference and the input of {type(host.pipe).__name__} have the shapes {shapes}; "
                "use a reference prompt (the first of the batch) there"
            )
        odds = reversed_odds(host.pipe.scheduler, layout.size) if reference.noise == "finer" else 1.0
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(reference.seed))
        latent, noise, text = (x.to(hidden.device, hidden.dtype) for x in (latent, noise, text))
        return PictureRow(latent, noise, text, None if pooled is None else pooled.to(text), odds)


@dataclass(frozen=True)
class CopyGuest(Guest):
    """A second copy of picture `of` of each half of the batch."""

    of: int
    shift: tuple[float, ...] | None = None

    @property
    def follows(self) -> int:
        """What it copies."""
        return self.of

    @property
    def key(self) -> Hashable:
        """What is copied, and where it stands."""
        return "copy", self.of, self.shift

    def enter(self, host: Host, arguments: Arguments, layout: Layout) -> CopyRow:
        """Nothing to prepare."""
        return CopyRow(self.of)


@dataclass(frozen=True)
class OpposedGuest(Guest):
    """A second row for picture `of` of each half of the batch, with another prompt (NAG's negative one)."""

    of: int
    prompt: str

    @property
    def follows(self) -> int:
        """What it opposes."""
        return self.of

    @property
    def key(self) -> Hashable:
        """What it opposes, and by which words."""
        return "opposed", self.of, self.prompt

    def enter(self, host: Host, arguments: Arguments, layout: Layout) -> OpposedRow:
        """Encode the prompt; the pooled text, which modulates images, stays the picture's."""
        return OpposedRow(self.of, host.encoded_prompt(self.prompt, arguments)[0])


@dataclass(frozen=True)
class PictureRow(GuestRow):
    """A picture as the transformer takes it: clean latent, its one fixed noise, and its text, all [1, ...].

    `odds` multiplies sigma / (1 - sigma), the odds of noise: 1 is the step's own level.
    """

    latent: Tensor
    noise: Tensor
    text: Tensor
    pooled: Tensor | None
    odds: float = 1.0

    def at(self, sigma: Tensor) -> Tensor:
        """The latent at noise level sigma: sigma * noise + (1 - sigma) * latent."""
        sigma = sigma.to(self.latent.device)
        if self.odds != 1:
            sigma = self.odds * sigma / (1 - sigma + self.odds * sigma)
        return (sigma * self.noise + (1 - sigma) * self.latent).to(self.latent.dtype)

    def put(self, role: str, rows: Sequence[Tensor], now: Entering) -> Tensor:
        """Condition tokens and channels are the first row's, the negative text too."""
        if role == "latents":
            latent = self.at(now.step.sigma)
            row = rows[0].clone()
            row[tuple(slice(0, size) for size in latent.shape)] = latent
            return row
        said = {"text": self.text, "pooled": self.pooled}.get(role) if now.conditional else None
        return rows[0] if said is None else said


@dataclass(frozen=True)
class CopyRow(GuestRow):
    """Row `of` once more."""

    of: int

    def put(self, role: str, rows: Sequence[Tensor], now: Entering) -> Tensor:
        """What that row has."""
        return rows[self.of]

    def residual(self, name: str, rows: Sequence[Tensor]) -> Tensor:
        """What that row has."""
        return rows[self.of]


@dataclass(frozen=True)
class OpposedRow(CopyRow):
    """Row `of` once more, reading other text [1, S_text, C]."""

    text: Tensor

    def put(self, role: str, rows: Sequence[Tensor], now: Entering) -> Tensor:
        """What that row has, but its text."""
        return self.text if role == "text" else super().put(role, rows, now)


def reversed_odds(scheduler: Any, tokens: int) -> float:
    """By what the odds of noise change when the schedule's shift mu is turned into -mu: exp(-2 mu) (FreeCus)."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0)) ** -2
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = base + (top - base) * (tokens - low) / (high - low)
    return math.exp(-2 * mu)
