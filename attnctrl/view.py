"""The view phase: some image tokens alone run through the blocks; gathered after embedding, scattered before the
output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .board import Board
from .edge import Edge
from .errors import ControlError


def shown_tokens(shown: Tensor, batch: int, size: int) -> Tensor:
    """A view's index checked: [n], or [B, n] with one row of it for each of the batch; ControlError else."""
    if shown.ndim not in (1, 2) or not shown.shape[-1] or (shown.ndim == 2 and len(shown) != batch):
        raise ControlError(
            f"a view of shape {tuple(shown.shape)} shows no tokens of {batch} rows with {size} tokens each"
        )
    return shown


def gathered(image: Tensor, shown: Tensor) -> Tensor:
    """The shown tokens of `image` [B, S_img, C] -> [B, n, C]."""
    if shown.ndim == 1:
        return image[:, shown]
    return image.gather(1, shown[..., None].expand(-1, -1, image.shape[-1]))


def scattered(image: Tensor, shown: Tensor, size: int) -> Tensor:
    """The shown tokens' values [B, n, C] in their places [B, size, C], zeros elsewhere."""
    whole = image.new_zeros(image.shape[0], size, image.shape[-1])
    index = shown.expand(image.shape[0], -1)[..., None].expand_as(image)
    return whole.scatter(1, index, image)


def view_hooks(edge: Edge, transformer: nn.Module, board: Board) -> list[Any]:
    """Hooks on the embedding's and the last layer's modules, for calls whose state shows some tokens alone."""

    def gather(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        state = board.now()
        if state is None or state.shown is None:
            return None
        size = state.layout.size
        return torch.cat([gathered(out[:, :size], state.shown), out[:, size:]], dim=1)

    def scatter(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        state = board.now()
        if state is None or state.shown is None:
            return None
        count = state.shown.shape[-1]
        return torch.cat([scattered(out[:, :count], state.shown, state.layout.size), out[:, count:]], dim=1)

    own: Any = getattr(transformer, "_orig_mod", transformer)
    embed, unembed = own.get_submodule(edge.embed), own.get_submodule(edge.unembed)
    return [embed.register_forward_hook(gather), unembed.register_forward_hook(scatter)]
