"""Fast arithmetic for training on a CPU: bfloat16 with plain attention.

torch's fused attention has a slow backward pass in bfloat16 on CPUs (154 ms a call of [96, 4, 104, 32], against
26 ms of two matrix products and a softmax); at these lengths the score matrix is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_FUSED = nn.functional.scaled_dot_product_attention


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """Attention over [n, heads, tokens, dim], unmasked; what has a mask goes to torch's own."""
    if attn_mask is not None or is_causal or dropout_p:
        return _FUSED(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value


@contextmanager
def fast(enabled: bool = True) -> Iterator[None]:
    """Within it, matrix products run in bfloat16 (weights stay float32) and attention is plain."""
    if not enabled:
        yield
        return
    functional: Any = nn.functional
    functional.scaled_dot_product_attention = _plain
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        functional.scaled_dot_product_attention = _FUSED
