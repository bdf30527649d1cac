"""What one transformer class must say of itself: the only place where its modules, tokens and positions are known."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .errors import ControlError
from .layout import Arguments, Layout, Rotary, Site

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .blocks import BlockPlace
    from .board import Board, Gates


@dataclass(frozen=True)
class Batched:
    """Names of the transformer's arguments that have an entry for every row: tensors, or lists of one a row.

    `latents`, `text`, `pooled` (None: it takes none) have a role, `others` (timestep, guidance) follow the first row.
    `residuals` may hold tensors of every row somewhere in lists and dicts (ControlNet's, `joint_attention_kwargs`).
    """

    latents: str = "hidden_states"
    text: str = "encoder_hidden_states"
    pooled: str | None = "pooled_projections"
    others: tuple[str, ...] = ("timestep",)
    residuals: tuple[str, ...] = ("joint_attention_kwargs",)

    @property
    def names(self) -> tuple[str, ...]:
        """All but the residuals."""
        return (self.latents, self.text, *((self.pooled,) if self.pooled else ()), *self.others)


class Edge(ABC):
    """One transformer class. `arguments` are the keyword arguments of its forward.

    `positions`: whether keys are rotated by their positions, or positions are added to the tokens before the blocks.
    `halves`: what carries the prompts under classifier-free guidance in one batch. `embed`, `unembed`: the modules
    whose results are the first image tokens [B, S_img, C] and the last ones; a view gathers and scatters there.
    """

    name: ClassVar[str]
    transformer: ClassVar[type]
    positions: ClassVar[Literal["rotary", "additive"]] = "rotary"
    batched: ClassVar[Batched] = Batched()
    halves: ClassVar[tuple[bool, ...]] = (False, True)
    embed: ClassVar[str] = "x_embedder"
    unembed: ClassVar[str] = "proj_out"

    def serves(self, transformer: Any) -> bool:
        """Whether a transformer is of this class, compiled as a whole or not."""
        return isinstance(getattr(transformer, "_orig_mod", transformer), self.transformer)

    @abstractmethod
    def sites(self, transformer: nn.Module) -> tuple[Site, ...]:
        """All attention sites that controls may choose, in block order; see `walked`."""

    @abstractmethod
    def processor(self, site: Site, board: Board, gates: Gates) -> Any:
        """A processor for `site` that walks the phases of the board's call; ControlError for a site it cannot serve."""

    @abstractmethod
    def layout(self, transformer: Any, arguments: Arguments) -> Layout:
        """Segments and grid of a call."""

    @abstractmethod
    def blocks(self, transformer: Any) -> tuple[BlockPlace, ...]:
        """Where each block is held, in running order."""

    def image_positions(self, arguments: Arguments) -> Tensor:
        """The image tokens' positions [S_img, axes] of a call, for rotary models."""
        raise ControlError(f"{self.name} adds its positions to the tokens; there are none to rotate keys by")

    def table(self, transformer: Any, positions: Tensor) -> Rotary:
        """Rotary tables [n, D] of positions [n, axes], which may be fractions; None where keys are not rotated."""
        return None

    def offset(self, shift: tuple[int, ...] | Literal["native"], layout: Layout) -> tuple[float, ...]:
        """By how much `image_positions` move under a shift in image grids (rows, columns); `native`: the model's own
        place for a picture beside the image, one grid to the right where it was trained on single pictures."""
        grids = (0, 1) if shift == "native" else shift
        return tuple(float(n * size) for n, size in zip(grids[-len(layout.grid) :], layout.grid, strict=True))

    def place(self, transformer: Any, layout: Layout) -> tuple[float, ...]:
        """Where a second picture's row stands, in image grids, for additive positions; ControlError for nowhere."""
        return (0, 1)

    def position_hooks(self, transformer: Any, board: Board) -> tuple[Any, ...]:
        """Hooks that give the rows of the board's `placed` their positions, for additive positions."""
        return ()

    def viewed(self, arguments: Arguments, layout: Layout, shown: Tensor) -> Arguments:
        """The arguments with positions and residuals of the `shown` image tokens [n] alone, latents whole."""
        return arguments


def walked(transformer: Any, paths: Mapping[str, str]) -> Iterator[tuple[str, int, Any]]:
    """Attention modules by module path, as (stream, number, module): `paths` has a pattern with one number a stream.

    In the order of `paths` and then of numbers. Modules that the patterns leave out (refiners, text towers) are no
    sites.
    """
    known = dict(getattr(transformer, "_orig_mod", transformer).named_modules())
    for stream, pattern in paths.items():
        found = [(int(match[1]), known[path]) for path in known if (match := re.fullmatch(pattern, path))]
        for number, module in sorted(found, key=lambda one: one[0]):
            yield stream, number, module
