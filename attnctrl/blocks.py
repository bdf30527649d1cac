"""The blocks of a transformer in running order, some exchanged for the length of one pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .board import Board

Streams = Any
"""What a block returns: one tensor, or a tuple of them; None where a stream has ended (SD3's last block)."""


@dataclass(frozen=True)
class BlockForm:
    """How a transformer's blocks are called and what they give back.

    `image`, `text`: the names of their parameters, wherever they stand in a call; `returns` the order of the result,
    `joint` where one sequence holds both, in the order of the call's layout.
    """

    image: str = "hidden_states"
    text: str | None = "encoder_hidden_states"
    returns: Literal["text, image", "image, text", "joint"] = "text, image"

    def passed(self, arguments: Mapping[str, Any]) -> Streams:
        """The result of a block that is left out."""
        image = arguments[self.image]
        if self.returns == "joint":
            return image
        text = arguments[self.text] if self.text else None
        return (text, image) if self.returns == "text, image" else (image, text)


@dataclass(frozen=True)
class BlockPlace:
    """Where a block is held: `holder[index]`."""

    holder: nn.ModuleList
    index: int
    form: BlockForm = BlockForm()


def split(streams: Streams, halves: int, half: int) -> Streams:
    """One half of the rows of what a block returned."""
    if isinstance(streams, Tensor):
        return streams.chunk(halves)[half]
    return None if streams is None else tuple(split(one, halves, half) for one in streams)


class Blocks:
    """`places` hold the blocks, as the transformer runs them."""

    def __init__(self, places: Sequence[BlockPlace], board: Board) -> None:
        self.places, self.board = tuple(places), board
        self.own = [place.holder[place.index] for place in self.places]

    @property
    def grouped(self) -> bool:
        """Whether diffusers' group offloading moves several blocks at once, on their first one's call."""
        hooks = [hook.get_hook("group_offloading") for b in self.own if (hook := getattr(b, "_diffusers_hook", None))]
        return any(hook is not None and len(hook.group.modules) > 1 for hook in hooks)

    def exchange(self, others: Mapping[int, nn.Module]) -> None:
        """Put other modules into some places."""
        for index, module in others.items():
            place = self.places[index]
            place.holder._modules[str(place.index)] = module

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

    def keeping(self, index: int) -> Keeping:
        """The block, with its last result kept."""
        return Keeping(self, index)

    def given(self, index: int, streams: Streams) -> Given:
        """A stand-in that returns given streams."""
        return Given(self, index, streams)

    def skipped(self, index: int) -> Skipped:
        """A stand-in that passes its input on."""
        return Skipped(self, index)

    def fed(self, index: int, change: Callable[[Tensor], Tensor]) -> Fed:
        """The block, fed with a changed image stream."""
        return Fed(self, index, change)


class Standing(nn.Module):
    """Stands in a block's place; other threads' calls get the block itself."""

    def __init__(self, blocks: Blocks, index: int) -> None:
        super().__init__()
        own = blocks.own[index]
        self.board, self.form = blocks.board, blocks.places[index].form
        self._own = (own,)  # not a submodule: nothing of the model is moved or counted twice
        self.names = list(inspect.signature(type(own).forward).parameters)[1:]
        self.context_pre_only = getattr(own, "context_pre_only", False)  # SD3's loop asks its blocks for it

    @property
    def own(self) -> nn.Module:
        """The model's own block."""
        return self._own[0]

    def forward(self, *args: Any, **kwargs: Any) -> Streams:
        """The block's result for another thread; for the session's own what stands here."""
        if self.board.foreign():
            return self.own(*args, **kwargs)
        return self.stand(args, kwargs)

    def stand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """What the session gets."""
        return self.own(*args, **kwargs)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by the block's own names."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


class Keeping(Standing):
    """The block, with its last result kept in `streams`."""

    streams: Streams = None

    def stand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The block's result."""
        self.streams = self.own(*args, **kwargs)
        return self.streams


class Given(Standing):
    """Returns given streams in place of the block's result."""

    def __init__(self, blocks: Blocks, index: int, streams: Streams) -> None:
        super().__init__(blocks, index)
        self.streams = streams

    def stand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The given streams, whatever comes in."""
        return self.streams


class Skipped(Standing):
    """Passes its input on."""

    def stand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The input, as a block returns it."""
        return self.form.passed(self.named(args, kwargs))


class Fed(Standing):
    """The block, fed with a changed image stream; a joint sequence is changed at its image tokens."""

    def __init__(self, blocks: Blocks, index: int, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(blocks, index)
        self.change = change

    def stand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The block's result on the changed image stream."""
        name = self.form.image
        stream = self.named(args, kwargs)[name]
        if self.form.returns == "joint":
            state = self.board.state
            assert state is not None
            start, stop = state.layout.image
            new = torch.cat([stream[:, :start], self.change(stream[:, start:stop]), stream[:, stop:]], dim=1)
        else:
            new = self.change(stream)
        if name in kwargs:
            return self.own(*args, **{**kwargs, name: new})
        place = self.names.index(name)
        return self.own(*args[:place], new, *args[place + 1 :], **kwargs)
