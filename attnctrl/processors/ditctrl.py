"""DiTCtrl's attention sharing: an edit's queries, the source's keys and values (arXiv 2412.18597)."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..control import Call
from ..registry import register
from ..where import Where
from .mutual import MutualControl, MutualEffect


@register
class DiTCtrl(MutualControl):
    """DiTCtrl: in the last blocks edits read all of the source, Attn(Q, K_source, V_source), its text included.

    With a region: image tokens inside of it read the source inside its own, others the source outside, and both its
    text; out = fg M + bg (1 - M). Published for FLUX with steps 2-11 of 28, for SD3 with 2-17, which is the default.
    """

    kind: Literal["ditctrl"] = "ditctrl"
    where: Where = Where(blocks="final", steps="7%-64%")

    title: ClassVar[str] = "DiTCtrl (reads the source's keys and values)"
    source: ClassVar[str] = "arXiv 2412.18597"

    @property
    def weaker(self) -> str:
        """Fewer steps, then less."""
        return f"{self.kind} with fewer steps or blocks, or strength={self.strength / 2:.2g}"

    def plan(self, call: Call) -> MutualEffect:
        """Rows, and tokens by region."""
        amount = call.constant(self.strength, unless=1.0)
        return MutualEffect(self.pairs(call), self.parts(call), amount, all_theirs=True)
