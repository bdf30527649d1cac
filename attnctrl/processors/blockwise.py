"""Perturbations of whole blocks: SLG leaves them out, TPG shuffles their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ..control import Call
from ..errors import ControlError
from ..guide import Change, Guide
from ..registry import register
from ..where import Where

if TYPE_CHECKING:
    from torch import Tensor


class BlockGuide(Guide):
    """A guide that acts on whole blocks."""

    attends: ClassVar[bool] = False

    @model_validator(mode="after")
    def _whole(self) -> BlockGuide:
        if self.where.heads != "all":
            raise ValueError(f"{self.kind} acts on whole blocks; heads cannot be chosen")
        return self


@register
class SLG(BlockGuide):
    """Skip-layer guidance: pushed away from the prediction without some blocks.

    The published setting is SD3.5-medium's: blocks 7-9, strength 2.8, the first fifth of the steps; on other models
    name the blocks.
    """

    kind: Literal["slg"] = "slg"
    where: Where = Where(blocks="7-9", steps="1%-20%")
    strength: float = Field(2.8, ge=-1.0, description="w, the weight of (plain - skipped); 0 is off, bit for bit")

    title: ClassVar[str] = "Skip-layer guidance"
    source: ClassVar[str] = "Stability AI, SD3.5-medium"

    def change(self, call: Call, block: int) -> Change:
        """Leave it out; its ControlNet residual stays, as in diffusers."""
        return "skip"


@register
class TPG(BlockGuide):
    """Token-perturbation guidance: pushed away from the prediction whose image tokens are shuffled before some blocks.

    The tokens move, positions stay; a permutation of its own for each seed, step and block.
    """

    kind: Literal["tpg"] = "tpg"
    where: Where = Where(blocks="middle")
    seed: int = Field(0, ge=0, lt=2**32, description="draws the permutations")

    title: ClassVar[str] = "Token perturbation"
    source: ClassVar[str] = "arXiv 2506.10036"

    def change(self, call: Call, block: int) -> Change:
        """The block's image stream in another order."""
        import torch

        count = call.layout.grid[0] * call.layout.grid[1]
        generator = torch.Generator().manual_seed(self.seed * 1000003 + call.step.index * 1009 + block)
        order = torch.randperm(count, generator=generator).to(call.device)

        def shuffled(image: Tensor) -> Tensor:
            return torch.cat([image[:, :count][:, order], image[:, count:]], dim=1)

        return shuffled

    def check(self, call: Call) -> None:
        """Raise ControlError for a single token, and where a view shows a part of them."""
        if call.layout.shown is not None:
            raise ControlError("tpg shuffles all image tokens, and another control's view shows a part of them")
        if call.layout.grid == (1, 1):
            raise ControlError("tpg has one image token and nothing to shuffle; make a larger picture")
