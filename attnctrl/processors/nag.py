"""NAG: a negative prompt within attention, also for guidance-distilled models (arXiv 2505.21179)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ..control import Call, Control, Family, Run
from ..effect import Attended, Effect
from ..guests import Guest, OpposedGuest
from ..registry import register
from ..statistics import widened

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = {True: 0.25, False: 0.125}
"""The published alpha: FLUX, whose positions are rotations, and SD3."""


@register
class NAG(Control):
    """Normalised attention guidance: image tokens are pushed away from what a negative prompt makes of them.

    Z~ = phi Z+ - (phi - 1) Z-; r = |Z~| / |Z+| a token over all heads; Z^ = Z~ min(r, tau) / r; the result is
    alpha Z^ + (1 - alpha) Z+, for the picture's row and for a second row with the negative prompt, whose text goes its
    own way. The batch doubles.
    """

    kind: Literal["nag"] = "nag"
    strength: float = Field(1.0, ge=0.0, description="multiplies alpha; 0 is off, bit for bit")
    prompt: str = Field("", description="the negative prompt")
    phi: float = Field(5.0, ge=1.0, description="how far from the negative; 1 is not at all")
    tau: float = Field(2.5, gt=0.0, description="by how much a token may grow at most")
    alpha: float | None = Field(
        None, ge=0.0, le=1.0, description="share of the pushed tokens; none: 0.25 on FLUX, 0.125 on SD3, as published"
    )
    norm: Literal[1, 2] = Field(1, description="of a token's size: 1 as in the paper, 2 as in the released FLUX code")

    title: ClassVar[str] = "NAG"
    family: ClassVar[Family] = "guidance"
    source: ClassVar[str] = "arXiv 2505.21179"

    order: ClassVar[int] = 30
    claims: ClassVar[frozenset[str]] = frozenset({"the negative prompt within attention"})

    @model_validator(mode="after")
    def _every_head(self) -> NAG:
        if self.where.heads != "all":
            raise ValueError("nag measures tokens over all heads; heads cannot be chosen")
        return self

    def guests(self, run: Run) -> Sequence[Guest]:
        """A row for each picture."""
        return [OpposedGuest(i, self.prompt) for i in range(run.pictures)]

    def plan(self, call: Call) -> Effect:
        """The pictures' rows and their opposed ones, in the half that carries the prompts."""
        if not any(call.conditional):
            return Effect()
        start, _ = call.groups[call.conditional.index(True)]
        rows = [
            [start + len(call.guests) + i for i in range(call.pictures)],
            [start + call.row_of(OpposedGuest(i, self.prompt)) for i in range(call.pictures)],
        ]
        positive, negative = call.once(("rows", id(self)), lambda: call.index(rows))
        alpha = min(1.0, self.strength * (ALPHA[call.rotary] if self.alpha is None else self.alpha))
        return NagEffect(positive, negative, self.phi, self.tau, alpha, self.norm)


@dataclass(frozen=True)
class NagEffect(Effect):
    """The guided image tokens in rows `positive` [n] and `negative` [n]."""

    positive: Tensor
    negative: Tensor
    scale: float
    tau: float
    alpha: float
    norm: int

    def output(self, at: Attended) -> Tensor:
        """Both rows' image part guided; where no text is read (SD3.5's second attention) there is nothing to guide."""
        out = at.out()
        if at.layout.text == (0, 0):
            return out
        image = at.layout.image_of(out)
        guided = self._guided(image[self.positive], image[self.negative])
        return at.layout.with_image(
            out, image.index_copy(0, self.positive, guided).index_copy(0, self.negative, guided)
        )

    def _guided(self, positive: Tensor, negative: Tensor) -> Tensor:
        from torch.linalg import vector_norm

        z, against = widened(positive), widened(negative)
        pushed = self.scale * z - (self.scale - 1) * against
        length = [vector_norm(x.flatten(2), ord=self.norm, dim=-1)[..., None, None] for x in (pushed, z)]
        ratio = length[0] / (length[1] + 1e-7)
        pushed = pushed * ratio.clamp(max=self.tau) / (ratio + 1e-7)
        return (self.alpha * pushed + (1 - self.alpha) * z).to(positive.dtype)
