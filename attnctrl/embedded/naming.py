"""A head for training only: what stands under each image token, read where binding should be done.

The loss of the velocity says little about which noun is which; the renderer knows, token by token. The head reads
the image tokens after the last block that methods leave to the picture's own content (a third of all).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.scenes import SUBJECT_NAMES


class Naming(nn.Module):
    """Subject and color, or none, of image tokens; `watch` names the block whose output it reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.subjects = nn.Linear(width, 1 + len(SUBJECT_NAMES))
        self.colors = nn.Linear(width, 1 + len(COLORS))
        self._states: list[Tensor] = []

    def watch(self, block: nn.Module) -> None:
        """Read the image tokens that a block gives out."""
        states = self._states

        def keep(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
            states[:] = [output[1]]

        block.register_forward_hook(keep)

    def forward(self, maps: Tensor) -> Tensor:
        """Cross-entropy against `dataset.content` [n, 2, h, w], of the last call's image tokens."""
        states = self.norm(self._states.pop())
        wanted = maps.long().flatten(2)
        losses = [
            nn.functional.cross_entropy(head(states).flatten(0, 1).float(), wanted[:, i].flatten())
            for i, head in enumerate((self.subjects, self.colors))
        ]
        return losses[0] + losses[1]
