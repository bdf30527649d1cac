"""A method of one's own, outside the package: heads taken away (Michel et al., arXiv 1905.10650), on any model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from attnctrl import Control, register
from attnctrl.control import Call
from attnctrl.effect import Attended, Effect


@register
class Ablate(Control):
    """Head ablation: what the chosen heads say is left out, by a degree."""

    kind: Literal["ablate"] = "ablate"
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much is left out; 0 is off, bit for bit")

    title: ClassVar[str] = "Head ablation"
    source: ClassVar[str] = "arXiv 1905.10650"
    order: ClassVar[int] = 20

    def plan(self, call: Call) -> Effect:
        """The same at every step."""
        return AblatingEffect(self.strength)


@dataclass(frozen=True)
class AblatingEffect(Effect):
    """(1 - strength) times a chosen head's output."""

    strength: float

    def output(self, at: Attended) -> Tensor:
        """What is left [B, S, H, D]."""
        out = at.out()
        left = 1 - self.strength * (1 if at.gate is None else at.gate.to(out.dtype)[:, None])
        return out * left
