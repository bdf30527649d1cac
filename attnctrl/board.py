"""What processors and blocks may read of a session while a transformer runs, and whose calls it is for."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from .effect import Effect
from .layout import Layout

Gates = tuple[tuple[int, Tensor | None], ...]
"""The controls that act at a site, by position, each with its gate over heads."""
Placed = tuple[tuple[int, tuple[int, ...]], ...]
"""Rows of a call, and how many tokens an axis they stand away where positions are added to the tokens."""


@dataclass(frozen=True)
class CallState:
    """One call: the layout, what of it each stream's sites see, and, by position of the control, its effect.

    None in the place of an effect: not at this step. `placed`: rows that stand away.
    """

    layout: Layout
    seen: dict[str, Layout]
    effects: tuple[Effect | None, ...]
    placed: Placed = ()
    shown: Tensor | None = None
    """The image tokens that a view leaves, [n] or [B, n]."""


class Board:
    """Where a session writes what its processors read. Other threads' calls find nothing on it."""

    def __init__(self) -> None:
        self.state: CallState | None = None
        self.thread = threading.get_ident()

    def foreign(self) -> bool:
        """Whether another thread is asking; traced code cannot ask, there a foreign call has waited before."""
        return not torch.compiler.is_compiling() and threading.get_ident() != self.thread

    def now(self) -> CallState | None:
        """The present call; None outside of one, and for another thread's."""
        return None if self.foreign() else self.state
