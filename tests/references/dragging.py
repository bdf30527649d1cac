"""Object dragging (DiffUHaul, arXiv 2406.01594) at one joint attention site, dense, for one row and its source's.

q, k, v and outs are [S, H, D], q and k already rotated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dragged_attention(
    q: Tensor, own: tuple[Tensor, Tensor], object_: tuple[Tensor, Tensor], ground: tuple[Tensor, Tensor], bias: Tensor
) -> Tensor:
    """softmax(q [k ; k_object ; k_ground]^T / sqrt(D) + bias) [v ; v_object ; v_ground]; bias [Sq, all keys]."""
    k, v = (torch.cat(parts) for parts in zip(own, object_, ground, strict=True))
    logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1]) + bias
    return torch.einsum("hqk,khd->qhd", torch.softmax(logits, -1), v)


def anchored(out: Tensor, source: Tensor, places: list[int], tau: float) -> Tensor:
    """lerp(source's out in its places, out, tau) of image tokens [S_img, H, D]."""
    return (1 - tau) * source[places] + tau * out


def matched(out: Tensor, source: Tensor, target: list[int], object_: list[int]) -> Tensor:
    """Each target token's out <- the source's object token with the largest cosine over all heads."""
    new = out.clone()
    for place in target:
        mine = out[place].flatten()
        alike = [float(mine @ source[t].flatten() / mine.norm() / source[t].norm()) for t in object_]
        new[place] = source[object_[alike.index(max(alike))]]
    return new
