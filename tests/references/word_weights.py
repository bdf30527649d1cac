"""Word weights: probabilities multiplied after the softmax and normalised again, dense, in the dtype of the inputs."""

import math

import torch
from torch import Tensor


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """P = softmax(q k^T / sqrt(D)); P <- P w / sum(P w); out = P v.

    q, k [B,S,H,D] already rotated; weights broadcasts to [B,H,Sq,Sk], and is not 0 for every key of a query.
    """
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    p = torch.softmax(logits, dim=-1) * weights
    return torch.einsum("bhqk,bkhd->bqhd", p / p.sum(dim=-1, keepdim=True), v)
