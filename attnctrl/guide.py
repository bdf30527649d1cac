"""What guidance is: controls seen only by a second, perturbed pass, and controls that combine predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .control import Call, Control, Family
from .effect import Effect

if TYPE_CHECKING:
    from torch import Tensor

Change = Literal["skip"] | Callable[["Tensor"], "Tensor"]
"""What a guide does to a whole block: leave it out, or feed it another image stream [B, S_img, C]."""


class Guide(Control):
    """A control that worsens a second pass of the conditional rows, so that the first is pushed away from it.

    w (v_cond - v_perturbed) is added to every row, so that a pipeline's own classifier-free guidance gives
    v_uncond + g (v_cond - v_uncond) + w (v_cond - v_perturbed). `strength` is w; -1 shows the perturbed prediction
    itself where the pipeline's own guidance is off. The pass starts at the lowest block that it changes.
    """

    strength: float = Field(3.0, ge=-1.0, description="w, the weight of (plain - perturbed); 0 is off, bit for bit")

    family: ClassVar[Family] = "guidance"

    def change(self, call: Call, block: int) -> Change | None:
        """What it does to a chosen block."""
        return None

    def plan(self, call: Call) -> Effect:
        """The effect on the perturbed pass."""
        return Effect()


class Combiner(Control):
    """A control that replaces classifier-free guidance's combination of two predictions."""

    family: ClassVar[Family] = "guidance"
    attends: ClassVar[bool] = False
    claims: ClassVar[frozenset[str]] = frozenset({"classifier-free guidance"})
    guidance_scale: float | None = Field(
        None, ge=0.0, description="g where a pipeline does not keep it (FLUX's true_cfg_scale) and does not say it"
    )

    def plan(self, call: Call) -> Effect:
        """Nothing within attention."""
        return Effect()

    @abstractmethod
    def combine(self, call: Call, cond: Tensor, uncond: Tensor, latents: Tensor, scale: float) -> Tensor:
        """The guided velocity, of the same shape as all that is given; `scale` is g, 1 for none."""
