"""Shared attention: rows of a set read the image keys and values of a reference row beside their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..control import Call, Control, Effect, Extra, Features, Reference, Rotary
from ..errors import ControlError
from ..layout import RowPlan
from ..statistics import adain


class Falling(BaseModel):
    """A value that falls with the noise level: value(sigma) = end + (start - end) * sigma ** power.

    The defaults are AlignedGen's released class default, (t / 1000) ** 2 (arXiv 2509.17088).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = 1.0
    end: float = 0.0
    power: float = Field(2.0, gt=0.0)

    def at(self, sigma: Tensor) -> Tensor:
        """The value at noise level sigma [] in [0, 1]."""
        return self.end + (self.start - self.end) * sigma.float() ** self.power


class SharingControl(Control):
    """What every sharing method is made of.

    strength: the odds of the shared tokens: their logits get + ln(strength) (StyleAligned's score shift), and AdaIN is
        mixed in by min(strength, 1). 0 is off, bit for bit; 1 is the paper's equation.
    key_scale: lambda, multiplies the rotated shared keys (a temperature): a number or `Falling`.
    adain_queries, adain_keys, adain_values: give the targets' image features the reference's statistics.
    shift: (rows, columns) in image grids by which the shared copy of the keys is moved under rotary positions; (0, 1) is
        ShiftPE, (0, 0) leaves it where it is.
    share: `reference`: rows read the set's first row; `all`: rows read every other row of the set.
    reference: a picture to follow instead of the first row.
    """

    strength: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    key_scale: float | Falling = 1.0
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    shift: tuple[int, int] = (0, 0)
    share: Literal["reference", "all"] = "reference"
    reference: Reference | None = None

    order: ClassVar[int] = 10

    @property
    def claimed(self) -> frozenset[str]:
        """The image features that AdaIN overwrites."""
        on = {"queries": self.adain_queries, "keys": self.adain_keys, "values": self.adain_values}
        return frozenset(f"the image {name}" for name, used in on.items() if used)

    def references(self) -> Sequence[Reference]:
        """The picture to follow, if any."""
        return () if self.reference is None else (self.reference,)

    def check(self, call: Call) -> None:
        """Raise ControlError for a batch in which nothing can be shared."""
        size = call.groups[0][1] - call.groups[0][0]
        pictures = size - len(call.pictures)
        if self.reference is None and pictures % call.images_per_prompt:
            raise ControlError(
                f"images_per_prompt={call.images_per_prompt} does not divide the batch of {pictures} pictures"
            )
        if size < 2 or (self.reference is None and pictures // call.images_per_prompt < 2):
            raise ControlError(
                f"{self.kind} shares between pictures, and this batch has one prompt: "
                "give two or more prompts, or a reference picture"
            )

    def plan(self, call: Call) -> SharingEffect:
        """Rows, positions and scales for one call."""
        rows, columns = (n * size for n, size in zip(self.shift, call.layout.grid, strict=True))
        return SharingEffect(
            call.once(("rows", id(self)), lambda: plan_rows(call, self.reference, self.share)),
            call.once(("rotary", rows, columns), lambda: call.shifted(rows, columns)),
            self._key_scale(call),
            call.constant(math.log(self.strength), unless=0.0),
            call.constant(min(self.strength, 1.0), unless=1.0),
            (self.adain_queries, self.adain_keys, self.adain_values),
        )

    def _key_scale(self, call: Call) -> Tensor | None:
        if isinstance(self.key_scale, Falling):
            return self.key_scale.at(call.step.sigma)
        return call.constant(self.key_scale, unless=1.0)


@dataclass(frozen=True)
class SharingEffect(Effect):
    """Attn(Q^, [K^ ; lambda K_ref], [V ; V_ref]) on one call; hats are AdaIN to the leading row."""

    rows: RowPlan
    rotary: Rotary
    key_scale: Tensor | None
    log_bias: Tensor | None
    amount: Tensor | None
    normalised: tuple[bool, bool, bool]

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v with the targets' image part normalised to the reference's statistics."""
        amount = self.amount
        if at.gate is not None:
            amount = (at.gate if amount is None else at.gate * amount).reshape(-1, 1)
        start, stop = at.layout.image
        result = []
        for x, wanted in zip((at.q, at.k, at.v), self.normalised, strict=True):
            if wanted:
                image = at.layout.image_of(x)
                new = adain(image[self.rows.targets], image[self.rows.leaders], amount)
                image = image.index_copy(0, self.rows.targets, new)
                x = torch.cat([x[:, :start], image, x[:, stop:]], dim=1)
            result.append(x)
        return result[0], result[1], result[2]

    def branches(self, at: Features) -> list[Extra]:
        """The image keys and values of the source rows, at their shifted positions."""
        targets, many = self.rows.sources.shape
        key, value = (
            at.layout.image_of(x)[self.rows.sources.flatten()].unflatten(0, (targets, many)).flatten(1, 2)
            for x in (at.k, at.v)
        )
        rotary = self.rotary
        if rotary is not None and many > 1:
            rotary = rotary[0].repeat(many, 1), rotary[1].repeat(many, 1)
        log_bias = self.log_bias
        if at.gate is not None:
            closed = torch.where(at.gate > 0, 0.0, -torch.inf)
            log_bias = closed if log_bias is None else closed + log_bias
        return [Extra(self.rows, key, value, rotary, self.key_scale, log_bias)]


def plan_rows(call: Call, picture: Reference | None, share: str) -> RowPlan:
    """Who reads whom. A set is the j-th image of every prompt, within each group of the batch.

    The reference is the set's first row, or the picture's own row, which stands before the prompts' rows. Reference rows read nobody unless
    `share` is "all".
    """
    reads: dict[int, list[int]] = {}
    leaders: list[int] = []
    for start, stop in call.groups:
        own = range(start + len(call.pictures), stop)
        for j in range(call.images_per_prompt):
            members = list(own[j :: call.images_per_prompt])
            first = members[0] if picture is None else start + call.row_of(picture)
            everyone = [first, *(m for m in members if m != first)]
            for row in members:
                sources = [m for m in everyone if m != row] if share == "all" else [first][: row != first]
                if sources:
                    reads[row] = sources
                    leaders.append(first)
    stop = call.groups[-1][1]
    rest = [row for row in range(stop) if row not in reads]
    targets = list(reads)
    placed = rest + targets
    order = sorted(range(stop), key=placed.__getitem__)

    def index(rows: Sequence[object]) -> Tensor:
        return torch.tensor(rows, device=call.device, dtype=torch.int64)

    return RowPlan(index(targets), index(list(reads.values())), index(leaders), index(rest), index(order))
