"""Shared attention: rows of a set read the image keys and values of a reference row beside their own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..branch import Branch, Branches
from ..control import Call, Control, Family, Run
from ..descriptions import Description
from ..effect import Effect, Features
from ..errors import ControlError, PlaceWarning
from ..guests import CopyGuest, Guest, PictureGuest
from ..layout import Rotary
from ..reference import Reference
from ..statistics import adain
from .sets import SetPlan, plan_sets

if TYPE_CHECKING:
    from torch import Tensor

Scale = Annotated[float, Field(ge=0.0)]


class Falling(Description):
    """A value that falls with the noise level: value(sigma) = end + (start - end) * sigma ** power.

    The defaults are AlignedGen's released class default, (t / 1000) ** 2 (arXiv 2509.17088).
    """

    start: float = Field(1.0, ge=0.0, description="the value at pure noise")
    end: float = Field(0.0, ge=0.0, description="the value of the finished picture")
    power: float = Field(2.0, gt=0.0, description="of the noise level")

    def at(self, sigma: Tensor) -> Tensor:
        """The value at noise level sigma [] in [0, 1]."""
        return self.end + (self.start - self.end) * sigma.float() ** self.power


KeyScale = Scale | Falling


class SharingControl(Control):
    """What every sharing method is made of.

    strength adds ln(strength) to the shared tokens' logits (StyleAligned's score shift) and mixes AdaIN and the text
    scale in by min(strength, 1).
    additive says how a shift is made where positions are added to the tokens (SD3) and keys cannot be rotated: `copy`,
    a second copy of the reference row stands there and only supplies keys and values; `move`, the reference row itself
    stands there (its own picture changes, no row is added); `none`. A reference picture's row is simply placed there.
    On tiny-sd3 AlignedGen keeps 0.67, 0.65 and 0.56 of the subjects with them; the last is certainly less
    (docs/style-sets.md); `copy` is the default because the first picture stays what it is alone.
    """

    strength: float = Field(
        1.0, ge=0.0, description="odds of the shared tokens: 0 is off, bit for bit; 1 is the paper's equation"
    )
    key_scale: KeyScale = Field(1.0, description="lambda, multiplies the shared keys: a temperature, fixed or falling")
    text_scale: Scale = Field(1.0, description="multiplies the followers' own text keys")
    adain_queries: bool = Field(True, description="queries get the reference's statistics")
    adain_keys: bool = Field(True, description="keys get the reference's statistics")
    adain_values: bool = Field(False, description="values get the reference's statistics")
    shift: tuple[int, int] | Literal["native"] = Field(
        (0, 0),
        description="rows and columns, in image grids, by which the shared keys stand away (0:1 is ShiftPE), or "
        "where the model itself expects a second picture (on SD3: beside, or where its positions have room)",
    )
    additive: Literal["copy", "move", "none"] = Field(
        "copy", description="how a shift is made on SD3: a copy of the reference row, the row itself, or not"
    )
    share: Literal["reference", "all"] = Field(
        "reference", description="pictures read the set's first one, or every other one"
    )
    reference: Reference | tuple[Reference, ...] | None = Field(
        None, description="a picture, or several, to follow instead; AdaIN takes the first one's statistics"
    )

    family: ClassVar[Family] = "sharing"
    order: ClassVar[int] = 10

    @property
    def claimed(self) -> frozenset[str]:
        """The features that it overwrites."""
        on = {"queries": self.adain_queries, "keys": self.adain_keys, "values": self.adain_values}
        claims = {f"the image {name}" for name, used in on.items() if used}
        return frozenset(claims | ({"the text keys"} if self.text_scale != 1 else set()))

    @property
    def leads(self) -> bool:
        """Without a picture to follow."""
        return not self.off and not self.references()

    def references(self) -> Sequence[Reference]:
        """The pictures to follow, if any."""
        if self.reference is None or isinstance(self.reference, Reference):
            return () if self.reference is None else (self.reference,)
        return self.reference

    def _stands(self, at: Run | Call) -> tuple[float, ...] | None:
        """The shift in grids where whole rows have to stand away; None where they stay."""
        if at.rotary or self.additive == "none" or self.shift == (0, 0):
            return None
        return at.edge.place(at.transformer, at.layout) if self.shift == "native" else self.shift

    def guests(self, run: Run) -> Sequence[Guest]:
        """A row for each picture; without one, where keys cannot be rotated, a copy of every set's first row."""
        stands = self._stands(run)
        if stands and self.shift == "native":
            _say_place(self.kind, stands, run.layout.grid)
        if self.references():
            return [PictureGuest(reference, stands) for reference in self.references()]
        if stands and self.share == "all":
            raise ControlError(
                "sharing between all rows cannot be shifted where positions are additive; set shift=(0, 0)"
            )
        if stands and self.additive == "copy":
            return [CopyGuest(j, stands) for j in range(run.images_per_prompt)]
        return []

    def moves(self, run: Run) -> Mapping[int, tuple[float, ...]]:
        """Every set's first row itself, with `additive="move"`."""
        stands = self._stands(run)
        if not stands or self.references() or self.additive != "move":
            return {}
        return dict.fromkeys(range(run.images_per_prompt), stands)

    def check(self, call: Call) -> None:
        """Raise ControlError for a batch in which nothing can be shared."""
        pictures = call.pictures
        if call.layout.shown is not None and any(one.mask for one in self.references()):
            raise ControlError(
                f"{self.kind}'s mask is of the whole grid, and another control's view shows a part of it"
            )
        alone = not self.references()
        if alone and pictures % call.images_per_prompt:
            raise ControlError(
                f"images_per_prompt={call.images_per_prompt} does not divide the batch of {pictures} pictures"
            )
        if alone and pictures // call.images_per_prompt < 2:
            raise ControlError(
                f"{self.kind} shares between pictures, and this batch has one prompt: "
                "give two or more prompts, or a reference picture"
            )

    def plan(self, call: Call) -> SharingEffect:
        """Rows, positions and scales for one call."""
        rotary = call.once(("rotary", self.shift), lambda: self._table(call)) if call.rotary else None
        amount = min(self.strength, 1.0)
        return SharingEffect(
            tuple(self._source(call, rotary, reference) for reference in self.references() or (None,)),
            call.constant(amount, unless=1.0),
            (self.adain_queries, self.adain_keys, self.adain_values),
            call.constant(1 + (self.text_scale - 1) * amount, unless=1.0),
        )

    def _table(self, call: Call) -> Rotary:
        positions = call.image_positions()
        return call.table(positions + positions.new_tensor(call.edge.offset(self.shift, call.layout)))

    def _source(self, call: Call, rotary: Rotary, reference: Reference | None) -> Source:
        guest: Guest | None = None
        stands = self._stands(call)
        if reference is not None:
            guest = PictureGuest(reference, stands)
        copies = stands if guest is None and self.additive == "copy" else None
        strength = self.strength * (reference.strength if reference else 1.0)
        tokens = call.once(("tokens", id(reference)), lambda: _tokens(call, reference)) if reference else None
        return Source(
            call.once(("rows", id(self), id(reference)), lambda: plan_sets(call, guest, self.share, copies)),
            tokens,
            rotary
            if rotary is None or tokens is None
            else call.once(("rotary", self.shift, id(reference)), lambda: (rotary[0][tokens], rotary[1][tokens])),
            self._key_scale(call),
            call.constant(math.log(strength), unless=0.0),
        )

    def _key_scale(self, call: Call) -> Tensor | None:
        if isinstance(self.key_scale, Falling):
            return self.key_scale.at(call.step.sigma)
        return call.constant(self.key_scale, unless=1.0)


@dataclass(frozen=True)
class Source:
    """What rows read of one reference: which rows, which image tokens (None: all), where they stand, how loud."""

    plan: SetPlan
    tokens: Tensor | None
    rotary: Rotary
    key_scale: Tensor | None
    log_bias: Tensor | None

    def of(self, image: Tensor, rows: Tensor) -> Tensor:
        """The tokens that are read of some rows of `image` [B, S_img, H, D]."""
        chosen = image[rows]
        return chosen if self.tokens is None else chosen[:, self.tokens]

    def branch(self, at: Features) -> Branch:
        """Image keys and values of the source rows, at their places; closed for heads that the gate leaves out."""
        import torch

        targets, many = self.plan.sources.shape
        key, value = (
            self.of(at.layout.image_of(x), self.plan.sources.flatten()).unflatten(0, (targets, many)).flatten(1, 2)
            for x in (at.k, at.v)
        )
        rotary = self.rotary
        if rotary is not None and many > 1:
            rotary = rotary[0].repeat(many, 1), rotary[1].repeat(many, 1)
        log_bias = self.log_bias
        if at.gate is not None:
            closed = torch.where(at.gate > 0, 0.0, -math.inf)[..., None, None]
            log_bias = closed if log_bias is None else closed + log_bias
        return Branch(key, value, self.plan.rows, None, rotary, self.key_scale, log_bias)


@dataclass(frozen=True)
class SharingEffect(Effect):
    """Attn(Q^, [a K_text ; K^ ; lambda K_ref], [V ; V_ref]) on one call; hats: AdaIN to the first source's leader."""

    sources: tuple[Source, ...]
    amount: Tensor | None
    normalised: tuple[bool, bool, bool]
    text_scale: Tensor | None

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v with the targets' image part normalised to the reference's statistics and their text keys scaled."""
        amount, source = self.amount, self.sources[0]
        targets = source.plan.rows.index
        if at.gate is not None:
            amount = (at.gate if amount is None else at.gate * amount).reshape(-1, 1)
        result = []
        for x, wanted in zip((at.q, at.k, at.v), self.normalised, strict=True):
            if wanted:
                image = at.layout.image_of(x)
                new = adain(image[targets], source.of(image, source.plan.leaders), amount)
                x = at.layout.with_image(x, image.index_copy(0, targets, new))
            result.append(x)
        q, k, v = result
        if self.text_scale is not None and at.layout.text != (0, 0):
            scale = self.text_scale if at.gate is None else (1 + (self.text_scale - 1) * at.gate).reshape(-1, 1)
            text = at.layout.text_of(k)
            k = at.layout.with_text(k, text.index_copy(0, targets, (text[targets] * scale).to(text.dtype)))
        return q, k, v

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """One more for each reference."""
        return (*branches, *(source.branch(at) for source in self.sources))


def _say_place(kind: str, stands: tuple[float, ...], grid: tuple[int, ...]) -> None:
    """Warn where a reference stands elsewhere than a grid to the right."""
    if stands == (0, 1):
        return
    down, right = (round(n * size) for n, size in zip(stands, grid, strict=True))
    shared = (grid[0] - down) * (grid[1] - right) / (grid[0] * grid[1])
    where = f"{down} tokens down" + (f" and {right} right, sharing {shared:.0%} of the places" if shared else "")
    rows, columns = grid
    warnings.warn(
        f"{kind}: this model's positions have no room for a reference beside {rows} x {columns} tokens; it stands "
        f"{where} (shift=native; a narrower picture has room)",
        PlaceWarning,
        stacklevel=2,
    )


def _tokens(call: Call, reference: Reference) -> Tensor | None:
    tokens = reference.foreground(call.layout.grid)
    return None if tokens is None else call.index(tokens)
