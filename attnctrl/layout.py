"""Where things are in one attention call: segments of tokens, the image's grid, attention sites, the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Kind = Literal["text", "pad", "image", "condition"]
KINDS: frozenset[Kind] = frozenset(("text", "pad", "image", "condition"))
Rotary = tuple["Tensor", "Tensor"] | None
"""(cos, sin) [S, D], or [T, S, D] with a table for each row; None where positions are in the tokens."""
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """One attention module of a transformer.

    `index` counts blocks over the whole model (FLUX.1: 0..56), `local` within its stream (double 0..18,
    single 0..37; SD3.5's second attention is the stream `dual` of the same block); `heads` is the number of attention
    heads, `groups` are other names under which it is chosen (`late`, `vital`), `sees` the kinds of tokens that stand in
    its sequence, `model` the name of its transformer where a pipeline has several.
    """

    index: int
    stream: str
    local: int
    heads: int
    module: nn.Module
    groups: frozenset[str] = frozenset()
    sees: frozenset[Kind] = KINDS
    model: str = ""
    late: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "late", "late" in self.groups)  # a compiled block may look at this, not at a set

    @property
    def label(self) -> str:
        """Global number with the stream's own beside it, as users see it: `L19 (single 0)`."""
        return f"{self.model and self.model + ' '}L{self.index} ({self.stream} {self.local})"


@dataclass(frozen=True)
class Segment:
    """Tokens start .. stop of the joint sequence; `number` counts the condition images."""

    kind: Kind
    start: int
    stop: int
    number: int = 0


@dataclass(frozen=True)
class Layout:
    """The tokens of one call at one site: segments in their order, and the image's grid.

    `grid` counts image tokens an axis: (rows, columns), or (frames, rows, columns). `text_lengths`: how much of the
    text
    is real in each row; None where the call does not say. `shown`: how many image tokens a view leaves; None for all.
    `image`, `text` are (start, stop), (0, 0) at a site that sees none.
    """

    segments: tuple[Segment, ...]
    grid: tuple[int, ...]
    text_lengths: tuple[int, ...] | None = None
    shown: int | None = None
    image: tuple[int, int] = field(init=False, compare=False)
    text: tuple[int, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for kind in ("image", "text"):
            object.__setattr__(self, kind, self.span(kind))

    @classmethod
    def of(cls, lengths: Sequence[tuple[Kind, int]], grid: tuple[int, ...], **more: Any) -> Layout:
        """The layout of so many tokens of each kind, in that order; kinds without a token are left out."""
        segments: list[Segment] = []
        for kind, length in lengths:
            if length:
                start = segments[-1].stop if segments else 0
                number = sum(one.kind == kind for one in segments)
                segments.append(Segment(kind, start, start + length, number))
        return cls(tuple(segments), grid, **more)

    def segment(self, kind: Kind, number: int = 0) -> Segment | None:
        """The first segment of a kind, or its `number`-th; None where there is none."""
        return next((one for one in self.segments if (one.kind, one.number) == (kind, number)), None)

    def span(self, kind: Kind, number: int = 0) -> tuple[int, int]:
        """(start, stop) of a segment; (0, 0) where there is none."""
        found = self.segment(kind, number)
        return (found.start, found.stop) if found else (0, 0)

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.segments[-1].stop

    @property
    def size(self) -> int:
        """Image tokens of the whole grid."""
        return prod(self.grid)

    def seen(self, kinds: frozenset[Kind]) -> Layout:
        """The layout of a site that sees only some kinds of tokens."""
        if kinds >= {one.kind for one in self.segments}:
            return self
        lengths = tuple((one.kind, one.stop - one.start) for one in self.segments if one.kind in kinds)
        return Layout.of(lengths, self.grid, text_lengths=self.text_lengths, shown=self.shown)

    def viewed(self, shown: int) -> Layout:
        """The same with only so many image tokens."""
        lengths = tuple((one.kind, shown if one.kind == "image" else one.stop - one.start) for one in self.segments)
        return Layout.of(lengths, self.grid, text_lengths=self.text_lengths, shown=shown)

    def part(self, x: Tensor, kind: Kind) -> Tensor:
        """The tokens of one kind in `x` [B, S, ...] (a view); none where the site sees none."""
        start, stop = self.image if kind == "image" else self.text if kind == "text" else self.span(kind)
        return x[:, start:stop]

    def with_part(self, x: Tensor, kind: Kind, part: Tensor) -> Tensor:
        """`x` [B, S, ...] with other tokens in the place of one kind."""
        import torch

        start, stop = self.image if kind == "image" else self.text if kind == "text" else self.span(kind)
        pieces = [piece for piece in (x[:, :start], part, x[:, stop:]) if piece.shape[1]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def image_of(self, x: Tensor) -> Tensor:
        """The image tokens of `x` [B, S, H, D] -> [B, S_img, H, D] (a view)."""
        return self.part(x, "image")

    def with_image(self, x: Tensor, image: Tensor) -> Tensor:
        """`x` with other image tokens."""
        return self.with_part(x, "image", image)

    def text_of(self, x: Tensor) -> Tensor:
        """The text tokens of `x` [B, S, H, D] (a view)."""
        return self.part(x, "text")

    def with_text(self, x: Tensor, text: Tensor) -> Tensor:
        """`x` with other text tokens."""
        return self.with_part(x, "text", text)


@dataclass(frozen=True)
class Step:
    """The clock of one transformer call.

    `index` counts solver steps from 0 within this run of `count` steps, `sigma` [] is the noise level in
    [0, 1], `evaluation` counts a step's evaluations of the velocity (Heun, midpoint: 0 and 1), `call` the transformer
    calls within one evaluation (FLUX with true CFG: 0 conditional, 1 not).
    """

    index: int
    count: int
    sigma: Tensor
    call: int = 0
    evaluation: int = 0


VITAL = (0, 1, 2, 17, 18, 25, 28, 53, 54, 56)
"""FLUX.1's vital layers as FreeCus found them (arXiv 2507.15249), of 57 blocks."""


def groups_of(index: int, blocks: int, late: bool, editable: bool = True, final: float = 5 / 24) -> frozenset[str]:
    """A block's group names; `final`: the share of the blocks that are the final ones, those in which DiTCtrl acts.

    `middle` and `last` are thirds, `vital` every block at the relative depth of one of FLUX.1's vital layers,
    `editable` those in which ConsistEdit acts: FLUX's single-stream blocks, all of SD3's.
    """
    vital = index in {round(layer * (blocks - 1) / 56) for layer in VITAL}
    middle, last = blocks <= 3 * index < 2 * blocks, 3 * index >= 2 * blocks
    ends = index >= blocks - max(1, round(final * blocks))
    groups = {"late": late, "middle": middle, "last": last, "final": ends, "vital": vital, "editable": editable}
    return frozenset(name for name, holds in groups.items() if holds)


def on(device: torch.device) -> Callable[[Any], Tensor]:
    """A function that makes int64 index tensors on a device."""
    import torch

    return lambda numbers: torch.as_tensor(numbers, dtype=torch.int64, device=device)
