"""Graphs that controls add to a model compiled block by block.

torch keeps one list of graphs a code object, 8 long, for all blocks of a class and all pipelines of a process. SD3's
blocks are three to it: the first (its text is a view), the middle ones, and the last (it gives no text); two batch
sizes of the stock model alone fill five places. Whatever a control adds, it adds for each of these that it selects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import tiny_flux, tiny_sd3
from torch._dynamo.testing import CompileCounter

from attnctrl import AlignedStyle, StyleAligned, Where, attached


@pytest.fixture
def graphs(latents_of: Any) -> Iterator[Callable[..., Any]]:
    """graphs(pipe, batches) warms the stock model up at these batch sizes and returns added(control), the graphs that a
    run of three pictures under the control adds, and what each of the batch sizes took."""

    def warm(pipe: Any, batches: tuple[int, ...]) -> tuple[Callable[..., int], list[int]]:
        torch._dynamo.reset()
        counter = CompileCounter()
        for name, blocks in pipe.transformer.named_children():
            if name.endswith("transformer_blocks"):
                for block in blocks:
                    block.compile(backend=counter, fullgraph=True)
        guidance = {} if hasattr(pipe.transformer, "x_embedder") else {"guidance_scale": 2.0}

        def added(control: Any = None, n: int = 3) -> int:
            before = counter.frame_count
            with attached(pipe, control):
                latents_of(pipe, n=n, steps=2, height=32, width=32, **guidance)
            return counter.frame_count - before

        stock = [added(n=n) for n in batches]
        assert added() == 0, "the stock model is warm"
        return added, stock

    with torch._dynamo.config.patch(recompile_limit=64):
        yield warm
    torch._dynamo.reset()


LATE, ALL = 2, 3  # middle and last block; first, middle and last block
ADDED = [
    (AlignedStyle(), LATE),
    (AlignedStyle(), 0),
    (StyleAligned(strength=0), ALL),
    (AlignedStyle(strength=0), 0),
    (AlignedStyle(strength=0.5), LATE),
    (AlignedStyle(strength=0.6), 0),
    (AlignedStyle(where=Where(steps="0")), 0),
    (None, 0),
]


def test_what_each_control_adds_on_sd3(graphs):
    """Never more than a graph for each kind of block that is selected, and none for another number or another run."""
    added, stock = graphs(tiny_sd3(), (3, 4))
    assert stock == [2, 3], "places of eight that the stock model alone takes: torch's and diffusers'"
    found = [added(control) for control, _ in ADDED]
    assert all(n <= most for n, (_, most) in zip(found, ADDED, strict=True)), found


def test_what_sharing_adds_on_flux(graphs):
    """Late blocks are of one class and, once two batch sizes were seen, two kinds: the first, and those after it."""
    added, _ = graphs(tiny_flux(), (3, 4))
    assert added(AlignedStyle()) <= 2
    assert added(AlignedStyle(key_scale=1.2)) == 0
    assert added(AlignedStyle(strength=0)) <= 2
    assert added(AlignedStyle()) == 0
