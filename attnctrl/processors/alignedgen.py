"""AlignedGen: style-consistent sets on diffusion transformers (arXiv 2509.17088)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from ..control import Preset
from ..registry import register
from ..where import Where
from .sharing import KeyScale, SharingControl

GENTLE = Preset(
    "AlignedGen, gentle",
    "AlignedGen without AdaIN and in the last third of the blocks alone: subjects stay (docs/style-sets.md).",
    MappingProxyType({"adain_queries": False, "adain_keys": False, "where": {"blocks": "last"}}),
)


@register
class AlignedStyle(SharingControl):
    """AlignedGen: a set follows its reference's style, with the shared keys moved aside (ShiftPE).

    Attn(Q^, [K_text ; K^ ; lambda shift(K_ref)], [V_text ; V ; V_ref]), image tokens of the reference only. AdaIN on
    image queries and keys before rotation. The reference row never sees its own copy. Blocks: the late ones (FLUX: the
    single-stream ones).
    """

    kind: Literal["aligned"] = "aligned"
    where: Where = Where(blocks="late")
    key_scale: KeyScale = Field(1.1, description="lambda: 1.1 in the released command, Falling() its class default")
    shift: tuple[int, int] | Literal["native"] = Field(
        "native", description="ShiftPE: keys stand so many grids down and right; no target token shares their place"
    )

    title: ClassVar[str] = "AlignedGen"
    source: ClassVar[str] = "arXiv 2509.17088"
    presets: ClassVar[Mapping[str, Preset]] = MappingProxyType({"aligned-gentle": GENTLE})
