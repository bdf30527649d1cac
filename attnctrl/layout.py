"""Where things are in a joint attention call: segments of tokens, rows of the batch, attention sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """One attention module of a transformer.

    `index` counts blocks over the whole model (FLUX.1: 0..56), `local` within its stream (double 0..18,
    single 0..37; SD3.5's second attention is the stream `dual` of the same block); `heads` is the number of attention
    heads, `groups` are other names under which it is chosen (`late`, `vital`).
    """

    index: int
    stream: str
    local: int
    heads: int
    module: nn.Module
    groups: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Global number with the stream's own beside it, as users see it: `L19 (single 0)`."""
        return f"L{self.index} ({self.stream} {self.local})"


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one call: half-open ranges of the joint sequence, and the image's grid.

    `text` and `image` are (start, stop); `condition` is the range of condition images (Kontext), or None.
    `grid` is (rows, columns) of image tokens.
    """

    text: tuple[int, int]
    image: tuple[int, int]
    grid: tuple[int, int]
    condition: tuple[int, int] | None = None

    def image_of(self, x: Tensor) -> Tensor:
        """The image tokens of `x` [B, S, H, D] -> [B, S_img, H, D] (a view)."""
        return x[:, self.image[0] : self.image[1]]


@dataclass(frozen=True)
class RowPlan:
    """Which batch rows read which: row `targets[i]` reads rows `sources[i]` and takes after row `leaders[i]`.

    `rest` read only themselves. `targets`, `leaders` [T], `sources` [T, R] and `rest` [B - T] are int64 on the compute
    device; `order` [B] puts cat([rest, targets]) back into batch order.
    """

    targets: Tensor
    sources: Tensor
    leaders: Tensor
    rest: Tensor
    order: Tensor


@dataclass(frozen=True)
class Step:
    """The clock of one transformer call.

    `index` counts solver steps from 0 within this run of `count` steps, `sigma` [] is the noise level in
    [0, 1], `call` counts the transformer calls within the step (FLUX with true CFG: 0 conditional, 1 not).
    """

    index: int
    count: int
    sigma: Tensor
    call: int


VITAL = (0, 1, 2, 17, 18, 25, 28, 53, 54, 56)
"""FLUX.1's vital layers as FreeCus found them (arXiv 2507.15249), of 57 blocks."""


def groups_of(index: int, blocks: int, late: bool) -> frozenset[str]:
    """A block's group names.

    `middle` is the middle third, `vital` every block at the relative depth of one of FLUX.1's vital layers.
    """
    vital = index in {round(layer * (blocks - 1) / 56) for layer in VITAL}
    middle = blocks <= 3 * index < 2 * blocks
    return frozenset(name for name, holds in {"late": late, "middle": middle, "vital": vital}.items() if holds)


Arguments = dict[str, Any]
