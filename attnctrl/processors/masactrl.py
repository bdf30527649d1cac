"""MasaCtrl: mutual self-attention, an edit's image tokens read the source's (arXiv 2304.08465)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ..control import Call
from ..effect import Effect
from ..registry import register
from ..where import Where
from .editing import KeysEffect
from .mutual import MutualControl, MutualEffect

if TYPE_CHECKING:
    from torch import Tensor


@register
class MasaCtrl(MutualControl):
    """MasaCtrl: in late blocks, after the first steps, the keys and values of edits' image tokens are the source's.

    The text's stay the edit's own, so that poses and actions may change and looks may not. With a region: image tokens
    inside of it read the source inside its own, others the source outside, and both the text; out = fg M + bg (1 - M).
    Published: from step 4 of 50 on.
    """

    kind: Literal["masactrl"] = "masactrl"
    where: Where = Where(blocks="late", steps="8%-100%")

    title: ClassVar[str] = "MasaCtrl (new poses, same looks)"
    source: ClassVar[str] = "arXiv 2304.08465"
    claims: ClassVar[frozenset[str]] = MutualControl.claims | {"the image keys", "the image values"}

    @property
    def weaker(self) -> str:
        """Later steps, then less."""
        return f"{self.kind} with later steps or blocks, or strength={self.strength / 2:.2g}"

    def plan(self, call: Call) -> Effect:
        """Rows, and tokens by region."""
        parts = self.parts(call)
        if parts is None:
            return KeysEffect(self.pairs(call), call.once(("share", self.strength), lambda: self._everywhere(call)))
        return MutualEffect(self.pairs(call), parts, call.constant(self.strength, unless=1.0), all_theirs=False)

    def _everywhere(self, call: Call) -> Tensor:
        import torch

        return torch.tensor(self.strength, device=call.device)
