"""Additive positions moved for some rows: another crop of the model's own table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ControlError


def placing_hook(embed: Any, run: Any) -> Any:
    """Register on a PatchEmbed `embed`: rows of `run.placed` get the crop that stands so many tokens away.

    out [B, S_img, C] keeps all other rows bit for bit. Raises ControlError where the table ends.
    """

    def place(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if not run.placed:
            return None
        rows, columns = (side // embed.patch_size for side in args[0].shape[-2:])
        table = _table(embed, args[0])
        centre = _crop(table, rows, columns, (0, 0))
        moved = out.clone()
        for row, shift in run.placed:
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


def _crop(table: Tensor, rows: int, columns: int, shift: tuple[int, int]) -> Tensor:
    side = table.shape[0]
    top, left = (side - rows) // 2 + shift[0], (side - columns) // 2 + shift[1]
    if min(top, left) < 0 or top + rows > side or left + columns > side:
        raise ControlError(
            f"a grid of {rows} x {columns} tokens moved by {shift} leaves this model's position table of "
            f"{side} x {side}; make smaller pictures, or set shift=(0, 0)"
        )
    return table[top : top + rows, left : left + columns].reshape(rows * columns, -1)
