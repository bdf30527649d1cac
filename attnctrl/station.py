"""Controls on one transformer: which sites they chose, the processors and hooks that stand there, and their removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .blocks import Blocks
from .board import Board
from .conflicts import refuse_conflicts
from .control import Control
from .edge import Edge
from .guidance import Guidance, Pass
from .guide import Combiner, Guide
from .view import view_hooks

Before = Callable[["Station", tuple[Any, ...], dict[str, Any]], Any]
After = Callable[["Station", dict[str, Any], Any], Any]


class Station:
    """One transformer of a session. `selected`: for each control its places in `sites`, each with its heads."""

    def __init__(self, name: str, transformer: nn.Module, edge: Edge, controls: Sequence[Control]) -> None:
        self.transformer, self.edge, self.controls = transformer, edge, tuple(controls)
        self.sites = tuple(replace(site, model=name) for site in edge.sites(transformer))
        self.selected = [control.where.select(self.sites) for control in controls]
        refuse_conflicts(self.controls, self.selected, self.sites)
        self.board = Board()
        self.guidance = self._guides()
        self._stock: dict[int, Any] = {}
        self._installed: dict[int, Any] = {}
        self._hooks: list[Any] = []

    def install(self, device: torch.device, before: Before, after: After) -> None:
        """Replace the processors of the selected sites and hook the transformer."""
        processors = {}
        for place, site in enumerate(self.sites):
            gates = tuple(
                (position, control.gate(site, selected[place], device))
                for position, (control, selected) in enumerate(zip(self.controls, self.selected, strict=True))
                if place in selected and control.attends
            )
            if gates:
                processors[place] = self.edge.processor(site, self.board, gates)
        for place, processor in processors.items():
            self._stock[place] = self.sites[place].module.processor
            self.sites[place].module.processor = processor
        self._installed = processors

        def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return before(self, args, kwargs)

        def leaving(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            return after(self, kwargs, output)

        self._hooks = [
            self.transformer.register_forward_pre_hook(entering, with_kwargs=True),
            self.transformer.register_forward_hook(leaving, with_kwargs=True),
            *self.edge.position_hooks(self.transformer, self.board),
        ]
        if any(type(control).view is not Control.view for control in self.controls):
            self._hooks += view_hooks(self.edge, self.transformer, self.board)

    def remove(self) -> list[str]:
        """Put the very processors back and forget the run; labels of sites where somebody else had changed them."""
        changed = [
            self.sites[place].label
            for place, processor in self._installed.items()
            if self.sites[place].module.processor is not processor
        ]
        for hook in self._hooks:
            hook.remove()
        for place, stock in self._stock.items():
            self.sites[place].module.processor = stock
        if self.guidance:
            self.guidance.forget()
        self._hooks, self._stock, self._installed, self.board.state = [], {}, {}, None
        return changed

    def said(self, position: int) -> str:
        """How many of its blocks a control chose, and which."""
        labels = [self.sites[place].label for place in self.selected[position]]
        return f"{len(labels)} of {len(self.sites)} blocks, {labels[0]} .. {labels[-1]}" if labels else "no block"

    def _guides(self) -> Guidance | None:
        passes, combiners = [], []
        for position, (control, selected) in enumerate(zip(self.controls, self.selected, strict=True)):
            if isinstance(control, Guide) and not control.off and selected:
                passes.append(Pass(position, control, tuple(sorted({self.sites[place].index for place in selected}))))
            if isinstance(control, Combiner) and not control.off:
                combiners.append(control)
        if not passes and not combiners:
            return None
        return Guidance(self.transformer, Blocks(self.edge.blocks(self.transformer), self.board), passes, combiners)

    def refuse_meeting(self, steps: Any) -> None:
        """Raise ConflictError where two controls claim the same thing at one of the run's steps."""
        refuse_conflicts(
            self.controls,
            self.selected,
            self.sites,
            lambda a, b: any(a.where.acts_at(step) and b.where.acts_at(step) for step in steps),
        )
