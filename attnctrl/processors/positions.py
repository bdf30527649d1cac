"""Positions: keys rotated by tables of neighbouring pairs; additive ones moved for some rows, by another crop."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ..board import Board
from ..errors import ControlError
from ..layout import Rotary


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate x [B, S, H, D] by (cos, sin) [S, D], or [B, S, D] with a table a row; interleaved pairs; None leaves
    it."""
    if rotary is None:
        return x
    if rotary[0].ndim == 2:
        turned: Tensor = apply_rotary_emb(x, rotary, sequence_dim=1)
        return turned
    cos, sin = (table.unsqueeze(2).to(x.device) for table in rotary)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x.float() * cos + torch.stack([-odd, even], dim=-1).flatten(-2).float() * sin).to(x.dtype)


def placing_hook(embed: Any, board: Board) -> Any:
    """Register on a PatchEmbed `embed`: rows that the board places get the crop that stands so many tokens away.

    out [B, S_img, C] keeps all other rows bit for bit. Raises ControlError where the table ends.
    """

    def place(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        state = board.now()
        if state is None or not state.placed:
            return None
        rows, columns = (side // embed.patch_size for side in args[0].shape[-2:])
        table = _table(embed, args[0])
        centre = _crop(table, rows, columns, (0, 0))
        moved = out.clone()
        for row, shift in state.placed:
            there = _crop(table, rows, columns, shift)
            moved[row] = (out[row].float() + (there - centre).to(out.device)).to(out.dtype)
        return moved

    return embed.register_forward_hook(place)


def _table(embed: Any, latent: Tensor) -> Tensor:
    """The table [side, side, C]; where offloading keeps it away between calls, read through the module itself."""
    side = embed.pos_embed_max_size
    if embed.pos_embed.device.type != "meta":
        return embed.pos_embed.reshape(side, side, -1)
    blank = torch.zeros_like(latent[:1, :, :1, :1]).expand(-1, -1, side * embed.patch_size, side * embed.patch_size)
    through: Tensor = embed.forward(blank)
    return through.float().reshape(side, side, -1)


def free_place(side: int, grid: tuple[int, ...]) -> tuple[float, float]:
    """How many grids down and right a second crop stands from the centred one of a table [side, side].

    A whole grid to the right, else down, else towards the corner as far as the table goes. Raises ControlError where
    the grid fills the table.
    """
    down, right = (side - (side - n) // 2 - n for n in grid)
    rows, columns = grid
    if right >= columns:
        return 0, 1
    if down >= rows:
        return 1, 0
    if max(down, right) < 1:
        raise ControlError(
            f"a picture of {rows} x {columns} tokens fills this model's position table of {side} x {side}, so that no "
            "reference can stand beside it; make smaller pictures, or set shift=0:0"
        )
    return down / rows, right / columns


def _crop(table: Tensor, rows: int, columns: int, shift: tuple[int, ...]) -> Tensor:
    side = table.shape[0]
    top, left = (side - rows) // 2 + shift[0], (side - columns) // 2 + shift[1]
    if min(top, left) < 0 or top + rows > side or left + columns > side:
        raise ControlError(
            f"a grid of {rows} x {columns} tokens moved by {shift} leaves this model's position table of "
            f"{side} x {side}; set shift=native, which stands where there is room, or shift=0:0, or make smaller "
            "pictures"
        )
    return table[top : top + rows, left : left + columns].reshape(rows * columns, -1)
