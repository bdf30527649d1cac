"""What a control is: an immutable description, and the effect that it has on one transformer call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from .attention import Branch
from .descriptions import Description
from .errors import ControlError
from .layout import RowPlan, Site, Step, TokenLayout
from .pictures import Picture, fit_picture
from .where import Where

Rotary = tuple[Tensor, Tensor] | None
T = TypeVar("T")


@dataclass(frozen=True)
class Features:
    """q, k, v [B, S, H, D] of one site, after qk-norm and before position rotation, and the call's layout.

    `gate` [H] is 1 for the heads that the control may touch there and 0 elsewhere; None means all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    gate: Tensor | None


@dataclass(frozen=True)
class Attended:
    """One site after its attention: q, k, v [B, S, H, D] as they enter the softmax (rotated), layout and gate.

    `out()` is the merged result [B, S, H, D], computed only if it is asked for; `attend(queries)` is what other queries
    would get from the same keys, values and branches; `branches` are what rows read beside their own keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    gate: Tensor | None
    out: Callable[[], Tensor]
    attend: Callable[[Tensor], Tensor]
    branches: list[Branch]
    site: Site


@dataclass(frozen=True)
class Extra:
    """What a control adds to a site: keys and values before rotation, for some rows, at positions of their own.

    `key`, `value` [T, Sk, H, D]; `rotary` rotates `key` (None: the model has no rotary positions);
    `key_scale` [] multiplies the keys; `log_bias` as in Branch.
    """

    rows: RowPlan
    key: Tensor
    value: Tensor
    rotary: Rotary
    key_scale: Tensor | None = None
    log_bias: Tensor | None = None

    def branch(self, rotated: Tensor) -> Branch:
        """The branch for the attention call, from the rotated keys."""
        key = rotated if self.key_scale is None else rotated * self.key_scale.to(rotated.dtype)
        return Branch(self.rows, key, self.value, self.log_bias)


class Effect:
    """What a control does at its sites during one transformer call; the base does nothing.

    Methods are pure: tensors in, tensors out. torch.compile traces them, so whatever changes from step to step is a
    0-dim tensor.
    """

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """New q, k, v [B, S, H, D], before rotation."""
        return at.q, at.k, at.v

    def branches(self, at: Features) -> list[Extra]:
        """Keys and values to read beside a row's own."""
        return []

    def output(self, at: Attended) -> Tensor:
        """What the site passes on [B, S, H, D], before the output projection."""
        return at.out()


class Reference(Description):
    """A picture to follow, as one more batch row that is noised to each step's level and dropped from the result.

    One fixed noise, no inversion: AlignedGen's external reference (arXiv 2509.17088). The level `finer`: FreeCus
    (arXiv 2507.15249).
    """

    picture: Picture = Field(description="the picture itself")
    caption: str = Field("", description="what it shows; empty is the empty prompt")
    seed: int = Field(0, ge=0, lt=2**63, description="draws its one noise")
    mask: Picture | None = Field(
        None, description="white where it may be read, of the picture's size; none: everywhere"
    )
    strength: float = Field(1.0, gt=0.0, description="multiplies the odds of its tokens, beside the control's own")
    noise: Literal["step", "finer"] = Field(
        "step", description="the scheduler's level, or the one under the reversed schedule shift: more detail"
    )

    @model_validator(mode="after")
    def _mask_fits(self) -> Reference:
        if self.mask is not None and self.mask.size != self.picture.size:
            sizes = " and ".join(f"{one.width} x {one.height} px" for one in (self.picture, self.mask))
            raise ValueError(f"picture and mask are {sizes}; give a mask of the picture's size")
        return self

    def foreground(self, grid: tuple[int, int]) -> list[int] | None:
        """The tokens of a (rows, columns) grid that lie mostly in the mask; None without one. ControlError for none."""
        if self.mask is None:
            return None
        small = fit_picture(self.mask, grid[1], grid[0]).convert("L")
        tokens = [i for i, light in enumerate(small.tobytes()) if light > 127]
        if not tokens:
            raise ControlError(f"the reference's mask leaves no token of the {grid[0]} x {grid[1]} grid; widen it")
        return tokens


@dataclass(frozen=True)
class Placed:
    """A row that stands `shift` image grids (rows, columns) away where positions are additive (SD3).

    `of`: a reference picture's row, or the number of a row within its half of the batch. With `copy` that row stays
    where it is, and a copy of it, dropped from the result, is moved: it only supplies keys and values.
    """

    of: Reference | int
    shift: tuple[int, int]
    copy: bool = False


@dataclass(frozen=True)
class Opposed:
    """A second row for picture `of` of each half of the batch, with another prompt (NAG's negative one)."""

    of: int
    prompt: str


Added = Reference | Placed | Opposed


@dataclass(frozen=True)
class Call:
    """One transformer call, as a control's `plan` sees it; its rows include those that references added.

    `groups` are the halves of the batch that share nothing with each other (one on FLUX; two under SD3's CFG), as
    (start, stop); each begins with the rows that were `added`: reference pictures, copies, opposed rows;
    `conditional` says of each whether it carries the prompts. `rotary` says whether positions are rotations; then
    `shifted(rows, columns)` gives the tables of the image tokens moved so far. `memory` lives as long as one run of the
    pipeline; `perturbed` marks a guide's second pass.
    """

    layout: TokenLayout
    step: Step
    groups: tuple[tuple[int, int], ...]
    images_per_prompt: int
    added: tuple[Added, ...]
    conditional: tuple[bool, ...]
    rotary: bool
    device: torch.device
    shifted: Callable[[int, int], Rotary]
    memory: dict[Hashable, Any]
    perturbed: bool = False

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time in this run, so that steps neither rebuild nor copy it."""
        key = (key, self.groups, self.layout)
        if key not in self.memory:
            self.memory[key] = make()
        result: T = self.memory[key]
        return result

    def constant(self, value: float, unless: float) -> Tensor | None:
        """`value` as a 0-dim tensor on the device; None for the value that needs no arithmetic."""
        if value == unless:
            return None
        return self.once(("constant", value), lambda: torch.tensor(value, device=self.device))

    def row_of(self, wanted: Added) -> int:
        """The place of an added row within a group."""
        data = (Placed, Opposed)
        return next(i for i, one in enumerate(self.added) if one is wanted or (isinstance(one, data) and one == wanted))


class Control(Description, ABC):
    """Base of all controls: data that can be stored in a recipe, and `plan`, which turns it into an effect.

    `attnctrl.register` makes a subclass known by its `kind`.
    """

    kind: str
    where: Where = Field(Where(), description="blocks, heads and steps at which it acts")
    strength: float = Field(1.0, ge=0.0, description="how much; 0 is off, bit for bit")

    title: ClassVar[str] = ""
    """Its name for people, in lists; the class's if empty."""
    family: ClassVar[Literal["sharing", "guidance", "other"]] = "other"
    """The list in which it stands."""
    source: ClassVar[str] = ""
    """Where the method was published."""

    @field_validator("where", mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """What `where` leaves open is as the method has it: Where(steps=...) keeps its blocks."""
        given = value.model_dump(exclude_unset=True) if isinstance(value, Where) else value
        usual = cls.model_fields["where"].default.model_dump()
        return {**usual, **given} if isinstance(given, dict) else value

    order: ClassVar[int] = 0
    """Place in the composition: lower orders change features first."""
    attends: ClassVar[bool] = True
    """Whether it acts within attention, so that its sites get processors."""
    claims: ClassVar[frozenset[str]] = frozenset()
    """What the control overwrites; two controls that claim the same thing at one site conflict."""

    @property
    def claimed(self) -> frozenset[str]:
        """The claims of this description as it is set."""
        return self.claims

    @property
    def off(self) -> bool:
        """Whether the description does nothing at all."""
        return self.strength == 0

    def gate(self, site: Site, heads: tuple[int, ...] | None, device: torch.device) -> Tensor | None:
        """How much each head of a chosen site is touched [H]; None: all of them, wholly."""
        if heads is None:
            return None
        return torch.tensor([float(h in heads) for h in range(site.heads)], device=device)

    @property
    def leads(self) -> bool:
        """Whether the first prompt's picture leads a set, and must be in every batch."""
        return False

    def references(self) -> Sequence[Reference]:
        """Pictures that want a batch row of their own."""
        return ()

    def placed(self, rotary: bool, images_per_prompt: int) -> Sequence[Placed]:
        """Rows to stand elsewhere on models whose positions are not `rotary`."""
        return ()

    def opposed(self, pictures: int) -> Sequence[Opposed]:
        """Rows with a prompt to turn away from, beside so many pictures."""
        return ()

    def amend(self, prompt: str) -> str:
        """The prompt as the control wants it."""
        return prompt

    def check(self, call: Call) -> None:
        """Raise ControlError when the call cannot carry this control."""

    @abstractmethod
    def plan(self, call: Call) -> Effect:
        """The effect on this call."""
