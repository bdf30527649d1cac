"""Shared attention on SD3: the dense references of references.attention in the order [image | text], without RoPE.

q, k, v and out are [B, S, H, D], S = image_len + text (text may be none, as in a dual block's second attention).
"""

from typing import Any

import torch
from torch import Tensor

from references.attention import adain, alignedgen_attention, dense_attention, stylealigned_attention


def text_first(x: Tensor, image_len: int) -> Tensor:
    """[image | text] to [text | image]."""
    return torch.cat([x[:, image_len:], x[:, :image_len]], dim=1)


def image_first(x: Tensor, image_len: int) -> Tensor:
    """[text | image] to [image | text]."""
    return text_first(x, x.shape[1] - image_len)


def alignedgen_sd3(q: Tensor, k: Tensor, v: Tensor, image_len: int, *, groups: int = 1, **options: Any) -> Tensor:
    """`alignedgen_attention` with identity rotations; `options` are its keywords (lambda_, adain, log_bias, ...).

    `groups=2` is a batch doubled for guidance, [uncond x n ; cond x n]: each half on its own, so that its reference
    is row ref_row of that half.
    """
    text_len = q.shape[1] - image_len
    cos, sin = (torch.full((q.shape[1], q.shape[-1]), angle, dtype=q.dtype) for angle in (1.0, 0.0))
    tables = (cos, sin, cos[text_len:], sin[text_len:])
    halves = zip(*(text_first(x, image_len).chunk(groups) for x in (q, k, v)), strict=True)
    outs = [alignedgen_attention(*half, *tables, text_len, **options) for half in halves]
    return image_first(torch.cat(outs), image_len)


def stylealigned_sd3(q: Tensor, k: Tensor, v: Tensor, image_len: int, **options: Any) -> Tensor:
    """`stylealigned_attention`; `options` are its keywords (groups, score_scale, score_shift, ...)."""
    parts = (text_first(x, image_len) for x in (q, k, v))
    return image_first(stylealigned_attention(*parts, text_len=q.shape[1] - image_len, **options), image_len)


def mirrored_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    image_len: int,
    *,
    source_row: int,
    ref_row: int = 0,
    groups: int = 1,
    lambda_: float = 1.1,
    log_bias: float = 0.0,
    adain_q: bool = True,
    adain_k: bool = True,
    adain_v: bool = False,
) -> Tensor:
    """Sharing whose keys and values come from row `source_row`, while AdaIN takes its statistics from `ref_row`.

    The source is a second copy of the reference with its positions shifted where they enter, at the model's input:
    SD3 cannot re-rotate keys as ShiftPE does. For every other row b, on image tokens I and all own tokens,
        q^, k^ = AdaIN(q_I, q_ref,I), AdaIN(k_I, k_ref,I)   (v^ too if asked; text as it is)
        out = softmax([q^ k^_b^T , lambda q^ k_src,I^T] / sqrt(D) + [0 , log_bias]) [v^_b ; v_src,I]
    The rows ref_row and source_row are plain attention over their own tokens. Rows count within each of `groups`.
    source_row = ref_row is ordinary sharing.
    """
    size = q.shape[0] // groups
    outs = []
    for row in range(q.shape[0]):
        start = row - row % size
        ref, source = slice(start + ref_row, start + ref_row + 1), start + source_row
        own = [x[row : row + 1].clone() for x in (q, k, v)]
        if row in (ref.start, source):
            outs.append(dense_attention(*own))
            continue
        for x, everyone, wanted in zip(own, (q, k, v), (adain_q, adain_k, adain_v), strict=True):
            if wanted:
                x[:, :image_len] = adain(x[:, :image_len], everyone[ref, :image_len])
        keys = torch.cat([own[1], lambda_ * k[source : source + 1, :image_len]], dim=1)
        values = torch.cat([own[2], v[source : source + 1, :image_len]], dim=1)
        bias = torch.zeros(keys.shape[1], dtype=q.dtype)
        bias[q.shape[1] :] = log_bias
        outs.append(dense_attention(own[0], keys, values, bias))
    return torch.cat(outs)
