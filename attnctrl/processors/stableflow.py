"""StableFlow: the source's keys and values in the vital blocks (arXiv 2411.14430)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..control import Call
from ..registry import register
from ..where import Where
from .editing import EditControl, KeysEffect

if TYPE_CHECKING:
    from torch import Tensor


@register
class StableFlow(EditControl):
    """StableFlow: in the vital blocks the image's keys and values are the source's, outside the region if there is one.

    K <- K_source, V <- V_source of image tokens; blocks without which FLUX.1's pictures fall apart. Its released code
    leaves out double block 2, which the paper has; elsewhere the blocks at the same depths, not searched anew.
    """

    kind: Literal["stableflow"] = "stableflow"
    where: Where = Where(blocks="vital")
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of keys and values is the source's; 0 is off")

    title: ClassVar[str] = "StableFlow (keeps what the vital blocks see)"
    source: ClassVar[str] = "arXiv 2411.14430"
    claims: ClassVar[frozenset[str]] = frozenset({"the image keys", "the image values"})

    @property
    def weaker(self) -> str:
        """Less of the source, then fewer blocks."""
        return f"{self.kind} with fewer blocks or steps, or strength={self.strength / 2:.2g}"

    def plan(self, call: Call) -> KeysEffect:
        """How much of the source's keys and values each image token takes."""
        return KeysEffect(self.pairs(call), call.once(("share", id(self)), lambda: self._share(call)))

    def _share(self, call: Call) -> Tensor:
        import torch

        inside = self.inside(call)
        outside = torch.ones(call.layout.size, device=call.device) if inside is None else 1 - inside
        return (self.strength * outside)[:, None, None]
