"""StyleAligned image generation via shared attention (arXiv 2312.02133), on joint attention."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..registry import register
from .sharing import SharingControl


@register
class StyleAligned(SharingControl):
    """StyleAligned: a set follows its reference's style by shared attention and AdaIN.

    Attn(Q^, [K_ref ; K^], [V_ref ; V]) with AdaIN on the targets' image queries and keys.
    `key_scale` is the paper's score scale and ln(`strength`) its score shift (strength 2 is shift log 2; for "very
    famous" pictures key_scale 0.5). A share of the layers: where=Where(blocks="0-56/2"). The paper's U-Net has no
    positions; here the shared keys keep their rotary positions. Blocks: all, as published.
    """

    kind: Literal["stylealigned"] = "stylealigned"

    title: ClassVar[str] = "StyleAligned"
    source: ClassVar[str] = "arXiv 2312.02133"
