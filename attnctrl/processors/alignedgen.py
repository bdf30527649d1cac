"""AlignedGen: style-consistent sets on diffusion transformers (arXiv 2509.17088)."""

from __future__ import annotations

from typing import Literal

from ..where import Where
from .sharing import Falling, SharingControl


class AlignedStyle(SharingControl):
    """AlignedGen: a set follows its reference's style, with the shared keys moved aside (ShiftPE).

    Attn(Q^, [K_text ; K^ ; lambda shift(K_ref)], [V_text ; V ; V_ref]), image tokens of the reference only.
    `shift` `native` is ShiftPE on FLUX.1: the reference's keys stand one grid width to the right, so that no target
    token
    shares its coordinate. AdaIN on image queries and keys before rotation. `key_scale` is lambda (1.1 in the released
    command; `Falling()` its class default). The reference row never sees its own copy. Blocks: the late ones (FLUX: the
    single-stream ones).
    """

    kind: Literal["aligned"] = "aligned"
    where: Where = Where(blocks="late")
    key_scale: float | Falling = 1.1
    shift: tuple[int, int] | Literal["native"] = "native"
