"""What a control is: an immutable description, and what it sees of the run and the call that it plans for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from .arrays import is_array
from .descriptions import Description, numbers_in
from .effect import Effect
from .layout import Arguments, Layout, Rotary, Site, Step, on
from .reference import Reference
from .where import Where

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .bank import Bank
    from .branch import Rows
    from .edge import Edge
    from .guests import Guest
    from .region import Region
    from .source import Source
    from .words import Part

T = TypeVar("T")

Family = Literal["sharing", "editing", "guidance", "other"]
"""The lists in which controls stand."""
LARGEST = 1e3, 1e6
"""Beyond these a strength, and any other number of a control, is a slip of the pen."""
USUAL = "its default, which attnctrl methods lists"


@dataclass(frozen=True)
class Preset:
    """Settings of a method that a study found to do well: `title` and `says` for people, `settings` as in a recipe."""

    title: str
    says: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What is known when a run begins, as a control's `guests` sees it.

    `pictures`: rows of one half of the batch; `images_per_prompt` of them belong to each prompt; `source`: what is
    edited.
    """

    pictures: int
    images_per_prompt: int
    edge: Edge
    transformer: Any
    layout: Layout
    source: Source | None = None

    @property
    def rotary(self) -> bool:
        """Whether keys are rotated by their positions, so that shared ones can stand anywhere, or rows have to."""
        return self.edge.positions == "rotary"


@dataclass(frozen=True)
class Call:
    """One transformer call, as a control's `plan` sees it; its rows include the guests'.

    `groups` are the halves of the batch that share nothing with each other (one on FLUX; two under SD3's CFG), as
    (start, stop); each begins with the rows of the `guests`; `conditional` says of each whether it carries the prompts.
    `bank` keeps what outlives a call; `perturbed` marks a guide's second pass; `words(text, picture)` gives the text
    columns of words in the prompt of a picture, `parts(picture)` how that became tokens; `source` is what is edited.
    """

    layout: Layout
    step: Step
    groups: tuple[tuple[int, int], ...]
    images_per_prompt: int
    guests: tuple[Guest, ...]
    conditional: tuple[bool, ...]
    edge: Edge
    transformer: Any
    arguments: Arguments
    device: torch.device
    bank: Bank
    words: Callable[[str, int], tuple[int, ...]]
    parts: Callable[[int], tuple[Part, ...]]
    perturbed: bool = False
    source: Source | None = None

    @property
    def rotary(self) -> bool:
        """Whether positions are rotations of keys."""
        return self.edge.positions == "rotary"

    @property
    def pictures(self) -> int:
        """Rows of one half that are no guest's."""
        start, stop = self.groups[0]
        return stop - start - len(self.guests)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returned the first time in this run, so that steps neither rebuild nor copy it."""
        return self.bank.once((key, self.groups, self.layout), make)

    def constant(self, value: float, unless: float) -> Tensor | None:
        """`value` as a 0-dim tensor on the device; None for the value that needs no arithmetic."""
        import torch

        if value == unless:
            return None
        return self.once(("constant", value), lambda: torch.tensor(value, device=self.device))

    def index(self, numbers: Any) -> Tensor:
        """Integers as an index tensor on the device."""
        return on(self.device)(numbers)

    def rows(self, chosen: Sequence[int]) -> Rows:
        """Rows of the batch by number, for a branch."""
        from .branch import Rows

        return Rows.chosen(chosen, self.groups[-1][1], on(self.device))

    def weights(self, region: Region) -> Tensor:
        """How much of each image token lies in a region [S_img], 0 to 1; its words are found in the source."""
        import torch

        find = None if self.source is None else self.source.find
        return self.once(
            ("weights", id(region)),
            lambda: torch.tensor(region.weights(self.layout.grid, find), device=self.device),
        )

    def row_of(self, guest: Guest) -> int:
        """The place of a guest's row within a group."""
        return next(i for i, one in enumerate(self.guests) if one.key == guest.key)

    def image_positions(self) -> Tensor:
        """The image tokens' positions [S_img, axes], for rotary models."""
        return self.edge.image_positions(self.arguments)

    def table(self, positions: Tensor) -> Rotary:
        """Rotary tables of positions [n, axes], which may be fractions."""
        return self.edge.table(self.transformer, positions)


class Control(Description, ABC):
    """Base of all controls: data that can be stored in a recipe, and `plan`, which turns it into an effect.

    `attnctrl.register` makes a subclass known by its `kind`.
    """

    kind: str
    where: Where = Field(Where(), description="blocks, heads and steps at which it acts")
    strength: float = Field(1.0, ge=0.0, description="how much; 0 is off, bit for bit")

    title: ClassVar[str] = ""
    """Its name for people, in lists; the class's if empty."""
    family: ClassVar[Family] = "other"
    """The list in which it stands."""
    source: ClassVar[str] = ""
    """Where the method was published."""
    presets: ClassVar[Mapping[str, Preset]] = MappingProxyType({})
    """Settings under a name of their own, which stands wherever a kind does."""

    @field_validator("where", mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """What `where` leaves open is as the method has it: Where(steps=...) keeps its blocks; a text names blocks."""
        given = value.model_dump(exclude_unset=True) if isinstance(value, Where) else value
        given = {"blocks": given} if isinstance(given, str) else given
        usual = cls.model_fields["where"].default.model_dump()
        return {**usual, **given} if isinstance(given, dict) else value

    @field_validator("reference", mode="before", check_fields=False)
    @classmethod
    def _one_picture(cls, value: Any) -> Any:
        """An array is one picture; its rows, or its channels, are none."""
        return {"picture": value} if is_array(value) else value

    @field_validator("*", mode="after")
    @classmethod
    def _bearable(cls, value: Any, info: ValidationInfo) -> Any:
        """No equation bears 1e30."""
        most = LARGEST[0] if info.field_name == "strength" else LARGEST[1]
        for number in numbers_in(value):
            if abs(number) > most:
                raise ValueError(f"{number:g} is beyond {most:g}, which no picture bears; try {USUAL}")
        return value

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
        import torch

        if heads is None:
            return None
        return torch.tensor([float(h in heads) for h in range(site.heads)], device=device)

    @property
    def leads(self) -> bool:
        """Whether the first prompt's picture leads a set, and must be in every batch."""
        return False

    def references(self) -> Sequence[Reference]:
        """Pictures that it follows."""
        return ()

    def guests(self, run: Run) -> Sequence[Guest]:
        """Rows of their own that it wants in the batch: by default one for each picture."""
        from .guests import PictureGuest

        return [PictureGuest(reference) for reference in self.references()]

    def moves(self, run: Run) -> Mapping[int, tuple[float, ...]]:
        """Pictures' own rows that stand elsewhere where positions are additive: image grids an axis, by row."""
        return {}

    def view(self, call: Call) -> Tensor | None:
        """The image tokens [n] or [B, n] that alone run through the blocks; None for all. The others predict zeros."""
        return None

    def amend(self, prompt: str) -> str:
        """The prompt as the control wants it."""
        return prompt

    def check(self, call: Call) -> None:
        """Raise ControlError when the call cannot carry this control."""

    @abstractmethod
    def plan(self, call: Call) -> Effect:
        """The effect on this call."""
