"""MotionCLR's edits (arXiv 2410.18977) of one attention site: a target's q, k, v made of its own and the source's.

Everything is for one row; image parts are [rows, columns, H, D], text parts [S_text, H, D]; `inside` [rows, columns].
"""

from __future__ import annotations

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor, Tensor]


def fused(own: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    """inside * own + (1 - inside) * other."""
    m = inside[..., None, None].to(own.dtype)
    return m * own + (1 - m) * other


def exchanged(own: Parts, source: Parts, inside: Tensor) -> Parts:
    """Q, K <- source; V is the target's own, outside the source's."""
    return source[0], source[1], fused(own[2], source[2], inside)


def exchanged_keys(own: Tensor, source: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Text keys: the target's column b is the source's column a for (a, b) in pairs."""
    new = own.clone()
    for theirs, mine in pairs:
        new[mine] = source[theirs]
    return new


def moved(own: Parts, source: Parts, inside: Tensor, down: int, right: int) -> Parts:
    """q, k, v <- the source's, rolled over the grid."""
    rolled = [torch.roll(x, (down, right), (0, 1)) for x in source]
    return tuple(fused(x, y, inside) for x, y in zip(rolled, own, strict=True))  # type: ignore[return-value]


def structured(own: Parts, source: Parts, inside: Tensor) -> Parts:
    """Q <- source; K, V are the target's own, outside the source's."""
    return source[0], fused(own[1], source[1], inside), fused(own[2], source[2], inside)


def varied(own: Parts, source: Parts, inside: Tensor, tile: int, seed: int) -> Parts:
    """Q <- the source's with whole tiles inside put in another order; K, V as in `structured`."""
    rows, columns = inside.shape
    corners = [
        (y, x)
        for y in range(0, rows - tile + 1, tile)
        for x in range(0, columns - tile + 1, tile)
        if (inside[y : y + tile, x : x + tile] >= 0.5).all()
    ]
    order = torch.randperm(len(corners), generator=torch.Generator().manual_seed(seed)).tolist()
    q = source[0].clone()
    for (y, x), number in zip(corners, order, strict=True):
        a, b = corners[number]
        q[y : y + tile, x : x + tile] = source[0][a : a + tile, b : b + tile]
    return q, fused(own[1], source[1], inside), fused(own[2], source[2], inside)
