"""One session: the lifetime of attached controls, their clock, their extra rows, and their removal."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .control import Call, Control, Effect, Placed, Reference, Rotary
from .errors import ConflictError, ControlError, NoEffectWarning
from .layout import Arguments, Site, Step, TokenLayout
from .rows import AddedRow, CopyRow, narrowed, widened
from .where import Where


class SessionLock:
    """Who has a transformer: one session at a time. Copies of the model get a lock of their own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None

    def __reduce__(self) -> tuple[type[SessionLock], tuple[()]]:
        return SessionLock, ()

    def acquire(self, wait: bool) -> None:
        """Take the transformer; raise ConflictError if this thread has it, or if another has and `wait` is off."""
        if self.owner == threading.get_ident():
            raise ConflictError("this pipeline already has controls attached; attach them together: [first, second]")
        if not self.lock.acquire(blocking=wait):
            raise ConflictError("another thread is using this pipeline; wait for it or pass wait=True")
        self.owner = threading.get_ident()

    def release(self) -> None:
        self.owner = None
        self.lock.release()


@dataclass(frozen=True)
class CallState:
    """What processors read: the layout and, by position of the control, its effect (None: not at this step)."""

    layout: TokenLayout
    effects: tuple[Effect | None, ...]


class Session:
    """Controls installed on one pipeline. Made by `attached`; everything that changes during a run is here."""

    def __init__(
        self, pipe: Any, architecture: Architecture, controls: Sequence[Control], images_per_prompt: int = 1
    ) -> None:
        self.pipe, self.architecture, self.controls = pipe, architecture, tuple(controls)
        self.images_per_prompt = images_per_prompt
        self.transformer: nn.Module = pipe.transformer
        self.sites = architecture.sites(self.transformer)
        self.selected = [control.where.select(self.sites) for control in self.controls]
        for control, selected in zip(self.controls, self.selected, strict=True):
            if not selected:
                raise ControlError(f"{control.kind} selects no block or head: {_said(control.where)}")
        _refuse_conflicts(self.controls, self.selected, self.sites)
        self.call: CallState | None = None
        self.placed: tuple[tuple[int, tuple[int, int]], ...] = ()
        """Rows of the present call and how many tokens (rows, columns) they stand away, for additive positions."""
        self.acted = [0] * len(self.controls)
        self.calls = 0
        self._clock = _Clock(pipe)
        self._rows: list[AddedRow] = []
        self._added: tuple[Reference | Placed, ...] = ()
        self._moved: tuple[Placed, ...] = ()
        self._halves = 1
        self._memory: dict[Hashable, Any] = {}
        self._stock: dict[int, Any] = {}
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Replace the processors of the selected sites and hook the transformer."""
        device = next(self.transformer.parameters()).device
        processors = {}
        for place, site in enumerate(self.sites):
            gates = []
            for position, selected in enumerate(self.selected):
                if place in selected:
                    heads = selected[place]
                    gates.append((position, None if heads is None else _gate(heads, site.heads, device)))
            if gates:
                processors[place] = self.architecture.processor(site, self, tuple(gates))
        for place, processor in processors.items():
            self._stock[place] = self.sites[place].module.processor
            self.sites[place].module.processor = processor
        register = self.transformer.register_forward_pre_hook
        self._hooks = [
            register(self._before, with_kwargs=True),
            self.transformer.register_forward_hook(self._after),
            *self.architecture.position_hooks(self.transformer, self),
        ]

    def remove(self) -> None:
        """Put the very processors back and drop everything that the run has stored."""
        for hook in self._hooks:
            hook.remove()
        for place, stock in self._stock.items():
            self.sites[place].module.processor = stock
        self._hooks, self._stock, self._rows, self._memory, self.call, self.placed = [], {}, [], {}, None, ()

    def warn_unused(self) -> None:
        """Say which controls never acted although the transformer ran."""
        for control, acted in zip(self.controls, self.acted, strict=True):
            if self.calls and not acted and not control.off:
                text = f"{control.kind} never acted: none of the steps {control.where.steps!r} came up"
                warnings.warn(text, NoEffectWarning, stacklevel=4)

    def __repr__(self) -> str:
        lines = [f"Session on {type(self.pipe).__name__} ({self.architecture.name})"]
        for control, selected in zip(self.controls, self.selected, strict=True):
            labels = [self.sites[place].label for place in selected]
            lines.append(f"  {control.kind}: {len(labels)} of {len(self.sites)} blocks, {labels[0]} .. {labels[-1]}")
        return "\n".join(lines)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        if args:
            raise ControlError("call the transformer with keyword arguments while controls are attached")
        started, step = self._clock.tick(kwargs)
        layout = self.architecture.layout(self.transformer, kwargs)
        if started:
            self._start(kwargs, layout)
        conditional = self.architecture.conditional(self.pipe, kwargs, step.call)
        self._halves = len(conditional)
        if self._rows:
            kwargs = widened(kwargs, self._rows, step.sigma, conditional, kwargs["hidden_states"].shape[0])
        self.calls += 1
        call = self._describe(layout, step, kwargs)
        self.placed = self._places(call)
        effects: list[Effect | None] = []
        for position, control in enumerate(self.controls):
            acts = not control.off and control.where.acts_at(step)
            if not control.off:
                control.check(call)
            effects.append(control.plan(call) if acts else None)
            self.acted[position] += acts
        self.call = CallState(layout, tuple(effects))
        return (), kwargs

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return narrowed(output, len(self._rows), self._halves) if self._rows else None

    def _start(self, arguments: Arguments, layout: TokenLayout) -> None:
        """A new run: ask the controls for the rows that they want, and make them."""
        on = [control for control in self.controls if not control.off]
        pictures = {id(one): one for control in on for one in control.references()}
        rotary, images = self.architecture.rotary, self.images_per_prompt
        placed = [one for control in on for one in control.placed(rotary, images)]
        self._moved = tuple(one for i, one in enumerate(placed) if one not in placed[:i])
        self._added = (*pictures.values(), *(one for one in self._moved if one.copy))
        make = self.architecture.picture_row
        self._rows = [make(self.pipe, picture, arguments, layout) for picture in pictures.values()]
        self._rows += [CopyRow(one.of) for one in self._moved if one.copy and isinstance(one.of, int)]
        self._memory = {}

    def _places(self, call: Call) -> tuple[tuple[int, tuple[int, int]], ...]:
        rows, columns = call.layout.grid
        places = []
        for start, _ in call.groups:
            for one in self._moved:
                added = call.row_of(one) if one.copy else None if isinstance(one.of, int) else call.row_of(one.of)
                row = len(call.added) + one.of if added is None and isinstance(one.of, int) else added
                assert row is not None
                places.append((start + row, (one.shift[0] * rows, one.shift[1] * columns)))
        return tuple(places)

    def _describe(self, layout: TokenLayout, step: Step, arguments: Arguments) -> Call:
        batch, halves = arguments["hidden_states"].shape[0], self._halves
        groups = tuple((batch * i // halves, batch * (i + 1) // halves) for i in range(halves))

        def shifted(rows: int, columns: int) -> Rotary:
            return self.architecture.shifted(self.transformer, arguments, rows, columns)

        device = arguments["hidden_states"].device
        rotary, added = self.architecture.rotary, self._added
        return Call(layout, step, groups, self.images_per_prompt, added, rotary, device, shifted, self._memory)


class _Clock:
    """Tells the step, the noise level and the call within the step from the scheduler; never counts blocks."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.timesteps: Any = None
        self.last: int | None = None
        self.within = 0

    def tick(self, arguments: Arguments) -> tuple[bool, Step]:
        """Whether a new run starts with this call (the scheduler has new timesteps), and its step."""
        scheduler = self.pipe.scheduler
        started = scheduler.timesteps is not self.timesteps
        begin = scheduler.begin_index or 0
        now = scheduler.step_index if scheduler.step_index is not None else begin
        self.within = 0 if started or now != self.last else self.within + 1
        self.timesteps, self.last = scheduler.timesteps, now
        return started, Step(now - begin, len(scheduler.timesteps) - begin, scheduler.sigmas[now], self.within)


def _gate(heads: Sequence[int], count: int, device: torch.device) -> Tensor:
    return torch.tensor([float(h in heads) for h in range(count)], device=device)


def _said(where: Where) -> str:
    return f"blocks={where.blocks!r}, heads={where.heads!r}"


def _refuse_conflicts(controls: Sequence[Control], selected: Sequence[dict[int, Any]], sites: Sequence[Site]) -> None:
    for j, second in enumerate(controls):
        for i, first in enumerate(controls[:j]):
            both = first.claimed & second.claimed if not (first.off or second.off) else frozenset()
            blocks = sorted(selected[i].keys() & selected[j].keys())
            if both and blocks and first.where.may_meet(second.where):
                raise ConflictError(
                    f"{first.kind} and {second.kind} both set {' and '.join(sorted(both))} in {len(blocks)} blocks "
                    f"({sites[blocks[0]].label} ..): give them different blocks or steps, or switch it off in one"
                )
