"""Statistics of features over tokens, and the precision in which they are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VARIANCE_EPS = 1e-5


def widened(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))


def adain(x: Tensor, reference: Tensor, amount: Tensor | None = None) -> Tensor:
    """Give `x` the per-head, per-channel mean and deviation of `reference`, over the token axis.

    `x`, `reference` [B, S, H, D] (S may differ); `amount` in [0, 1], broadcastable to [B, S, H, D], mixes with the
    unchanged x (None is 1). Computed in fp32 or wider, returned in x's dtype. sigma = sqrt(var + 1e-5), var unbiased as
    in the released code of StyleAligned (arXiv 2312.02133) and AlignedGen (arXiv 2509.17088).
    """
    import torch

    a, r = widened(x), widened(reference)
    # one token has no deviation: unbiased, it would be nan
    var_a, mean_a = torch.var_mean(a, dim=1, keepdim=True, correction=min(1, a.shape[1] - 1))
    var_r, mean_r = torch.var_mean(r, dim=1, keepdim=True, correction=min(1, r.shape[1] - 1))
    out = (a - mean_a) * torch.rsqrt(var_a + VARIANCE_EPS) * torch.sqrt(var_r + VARIANCE_EPS) + mean_r
    if amount is not None:
        out = torch.lerp(a, out, amount.to(a.dtype))
    return out.to(x.dtype)
