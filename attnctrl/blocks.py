"""The blocks of a transformer in running order, some exchanged for the length of one pass.

A block takes and gives the image stream and the text stream: called with keywords, it returns (text, image).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Streams = tuple[Tensor | None, Tensor]
"""What a block returns: text [B, S_text, C] (None after SD3's last block) and image [B, S_img, C]."""


class Blocks:
    """`places` are the module lists that hold the blocks, with the index in each, as the transformer runs them."""

    def __init__(self, places: Sequence[tuple[nn.ModuleList, int]]) -> None:
        self.places = tuple(places)
        self.own = [holder[i] for holder, i in self.places]

    @property
    def grouped(self) -> bool:
        """Whether diffusers' group offloading moves several blocks at once, on their first one's call."""
        hooks = [hook.get_hook("group_offloading") for b in self.own if (hook := getattr(b, "_diffusers_hook", None))]
        return any(hook is not None and len(hook.group.modules) > 1 for hook in hooks)

    def exchange(self, others: Mapping[int, nn.Module]) -> None:
        """Put other modules into some places."""
        for index, module in others.items():
            holder, i = self.places[index]
            holder._modules[str(i)] = module

    def restore(self) -> None:
        """Put the model's own blocks back everywhere."""
        self.exchange(dict(enumerate(self.own)))

    @contextmanager
    def exchanged(self, others: Mapping[int, nn.Module]) -> Iterator[None]:
        """Other modules in some places, the model's own afterwards."""
        self.exchange(others)
        try:
            yield
        finally:
            self.restore()


class Standing(nn.Module):
    """Stands in a block's place; `context_pre_only` is what SD3's loop asks of its blocks."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.context_pre_only = getattr(block, "context_pre_only", False)


class Recording(Standing):
    """The block, with its last result kept in `streams`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.block = block
        self.streams: Streams | None = None

    def forward(self, **arguments: Any) -> Streams:
        """The block's result."""
        self.streams = self.block(**arguments)
        return self.streams


class Given(Standing):
    """Returns given streams in place of the block's result."""

    def __init__(self, block: nn.Module, streams: Streams) -> None:
        super().__init__(block)
        self.streams = streams

    def forward(self, **arguments: Any) -> Streams:
        """The given streams, whatever comes in."""
        return self.streams


class Skipped(Standing):
    """Passes its input on."""

    def forward(self, *, hidden_states: Tensor, encoder_hidden_states: Tensor | None, **rest: Any) -> Streams:
        """The input as (text, image)."""
        return encoder_hidden_states, hidden_states


class Fed(Standing):
    """The block, fed with a changed image stream."""

    def __init__(self, block: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(block)
        self.block, self.change = block, change

    def forward(self, *, hidden_states: Tensor, **rest: Any) -> Streams:
        """The block's result on the changed image stream."""
        streams: Streams = self.block(hidden_states=self.change(hidden_states), **rest)
        return streams
