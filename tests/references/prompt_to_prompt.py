"""Prompt-to-prompt (arXiv 2208.01626) on the joint map: columns of the source's probabilities put into the target's."""

import math

import torch
from torch import Tensor


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) of q, k [S, H, D] already rotated -> [H, Sq, Sk]."""
    return torch.softmax(torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1]), dim=-1)


def edited_map(target: Tensor, source: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """`target`'s map [H, Sq, Sk] with column b <- `source`'s column a for (a, b) in pairs.

    The other columns share what is left of 1 as they did among themselves.
    """
    new = target.clone()
    theirs, mine = ([pair[side] for pair in pairs] for side in (0, 1))
    new[..., mine] = 0
    new = new / new.sum(-1, keepdim=True) * (1 - source[..., theirs].sum(-1, keepdim=True))
    new[..., mine] = source[..., theirs]
    return new
