"""ConsistEdit: a region edited, the rest and as much structure as wanted kept (arXiv 2510.17803)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..control import Call
from ..effect import Effect, Features
from ..registry import register
from ..where import Where
from .editing import EditControl, Pairs

if TYPE_CHECKING:
    from torch import Tensor


@register
class ConsistEdit(EditControl):
    """ConsistEdit: image tokens take the source's q, k, v outside the region, and its q, k inside for the first steps.

    In the first floor(alpha T) of T steps Q, K <- source everywhere; afterwards M Q + (1 - M) Q_source, and K alike; at
    all steps V <- M V + (1 - M) V_source; M is 1 in the region. Text tokens are never touched. Without a region only
    the first part acts.
    """

    kind: Literal["consistedit"] = "consistedit"
    where: Where = Where(blocks="editable")
    alpha: float = Field(
        0.3, ge=0.0, le=1.0, description="structure: the share of the steps that keep it; 1 recolours, 0.3 reshapes"
    )
    identity: float = Field(
        0.0, ge=0.0, le=1.0, description="how much of the source's values is kept inside the region; 1 is no edit"
    )
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of it all; 0 is off, bit for bit")

    title: ClassVar[str] = "ConsistEdit (edits a region)"
    source: ClassVar[str] = "arXiv 2510.17803"
    claims: ClassVar[frozenset[str]] = frozenset({"the image queries", "the image keys", "the image values"})

    @property
    def weaker(self) -> str:
        """Less structure kept, then less of the picture."""
        return f"{self.kind} with alpha={self.alpha / 2:.2g}" if self.alpha > 0.05 else "a larger region"

    def plan(self, call: Call) -> ConsistEffect:
        """How much of the source's features each image token takes at this step."""
        early = call.step.index < math.floor(self.alpha * call.step.count + 1e-9)
        outside, kept = call.once(("shares", id(self)), lambda: self._shares(call))
        everywhere = call.once(("everywhere", id(self)), lambda: outside.new_full(outside.shape, self.strength))
        return ConsistEffect(self.pairs(call), everywhere if early else outside, kept)

    def _shares(self, call: Call) -> tuple[Tensor, Tensor]:
        """Shares of the source [S_img, 1, 1] in q and k after the first steps, and in v."""
        import torch

        inside = self.inside(call)
        if inside is None:
            inside = torch.ones(call.layout.size, device=call.device)
        outside = (self.strength * (1 - inside))[:, None, None]
        return outside, outside + self.strength * self.identity * inside[:, None, None]


@dataclass(frozen=True)
class ConsistEffect(Effect):
    """Image q and k take the source's by `structure`, v by `content` [S_img, 1, 1]."""

    pairs: Pairs
    structure: Tensor
    content: Tensor

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """The three, fused for the pictures' rows."""
        q, k = (self.pairs.replaced(x, self.structure, at) for x in (at.q, at.k))
        return q, k, self.pairs.replaced(at.v, self.content, at)
