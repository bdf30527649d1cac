"""APG: classifier-free guidance without its oversaturating part (arXiv 2410.02416)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..control import Call
from ..errors import ControlError
from ..guide import Combiner
from ..registry import register
from ..statistics import widened

if TYPE_CHECKING:
    from torch import Tensor


@register
class APG(Combiner):
    """Adaptive projected guidance: the guidance's part along the prediction is scaled by eta, its norm bounded.

    With denoised predictions D = x - sigma v and d = D_cond - D_uncond (+ momentum times the last d), d is clipped to
    the norm threshold and split along D_cond: D = D_cond + (g - 1) (d_orthogonal + eta d_parallel). g is the pipeline's
    own scale.
    """

    kind: Literal["apg"] = "apg"
    strength: float = Field(1.0, ge=0.0, le=1.0, description="mixes it with plain guidance; 0 is off, bit for bit")
    eta: float = Field(0.0, description="scales guidance along the prediction; 1 is plain guidance")
    momentum: float = Field(-0.5, gt=-1.0, lt=1.0, description="how much of the last step's guidance is added")
    norm_threshold: float = Field(15.0, ge=0.0, description="bounds the guidance's norm; 0 does not")

    title: ClassVar[str] = "APG"
    source: ClassVar[str] = "arXiv 2410.02416"

    def check(self, call: Call) -> None:
        """Raise ControlError where there is no guidance to replace."""
        if not call.rotary and len(call.groups) == 1 and call.step.call == 0:
            raise ControlError("apg replaces classifier-free guidance, and it is off; give a guidance_scale over 1")

    def combine(self, call: Call, cond: Tensor, uncond: Tensor, latents: Tensor, scale: float) -> Tensor:
        """The guided velocity, computed in float32."""
        from torch.linalg import vector_norm

        sigma, dims = widened(call.step.sigma.to(cond.device)), tuple(range(1, cond.ndim))
        x, c, u = widened(latents), widened(cond), widened(uncond)
        denoised = x - sigma * c
        gap = sigma * (u - c)
        if self.momentum:
            gap = gap + self.momentum * call.bank.get(self, "gap", 0.0)
            call.bank.keep(self, "gap", gap)
        if self.norm_threshold:
            size = vector_norm(gap, dim=dims, keepdim=True)
            gap = gap * (self.norm_threshold / size.clamp(min=1e-12)).clamp(max=1.0)
        along = denoised / vector_norm(denoised, dim=dims, keepdim=True).clamp(min=1e-12)
        parallel = (gap * along).sum(dims, keepdim=True) * along
        wanted = denoised + (scale - 1) * (gap - parallel + self.eta * parallel)
        guided = (x - wanted) / sigma.clamp(min=1e-6)
        plain = u + scale * (c - u)
        return (plain + self.strength * (guided - plain)).to(cond.dtype)
