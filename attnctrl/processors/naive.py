"""Plain attention sharing, the baseline that StyleAligned and AlignedGen improve on."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..registry import register
from ..where import Where
from .sharing import SharingControl


@register
class NaiveSharing(SharingControl):
    """Naive sharing: the reference's keys and values as they are; the baseline.

    Attn(Q, [K ; K_ref], [V ; V_ref]): no AdaIN, no shift, in AlignedGen's blocks.
    AlignedGen (arXiv 2509.17088, its "direct sharing") shows that targets then copy the reference's content.
    """

    kind: Literal["naive"] = "naive"
    where: Where = Where(blocks="late")
    adain_queries: bool = False
    adain_keys: bool = False

    title: ClassVar[str] = "Naive sharing"
    source: ClassVar[str] = "arXiv 2509.17088, its direct sharing"
