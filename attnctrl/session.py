"""One session: the lifetime of attached controls, their clock, their extra rows, and their removal."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, ReferenceRow
from .control import Call, Control, Effect, Reference, Rotary
from .errors import ConflictError, ControlError, NoEffectWarning
from .layout import Arguments, Site, Step, TokenLayout
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
        self.acted = [0] * len(self.controls)
        self.calls = 0
        self._clock = _Clock(pipe)
        self._rows: list[ReferenceRow] = []
        self._pictures: tuple[Reference, ...] = ()
        self._memory: dict[Hashable, Any] = {}
        self._stock: dict[int, Any] = {}
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Replace the processors of the selected sites and hook the transformer."""
        device = next(self.transformer.parameters()).device
        processors = {}
        for site in self.sites:
            gates = []
            for position, selected in enumerate(self.selected):
                if site.index in selected:
                    heads = selected[site.index]
                    gates.append((position, None if heads is None else _gate(heads, site.heads, device)))
            if gates:
                processors[site.index] = self.architecture.processor(site, self, tuple(gates))
        for site in self.sites:
            if site.index in processors:
                self._stock[site.index] = site.module.processor
                site.module.processor = processors[site.index]
        register = self.transformer.register_forward_pre_hook
        self._hooks = [
            register(self._before, with_kwargs=True),
            self.transformer.register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Put the very processors back and drop everything that the run has stored."""
        for hook in self._hooks:
            hook.remove()
        for site in self.sites:
            if site.index in self._stock:
                site.module.processor = self._stock[site.index]
        self._hooks, self._stock, self._rows, self._memory, self.call = [], {}, [], {}, None

    def warn_unused(self) -> None:
        """Say which controls never acted although the transformer ran."""
        for control, acted in zip(self.controls, self.acted, strict=True):
            if self.calls and not acted and not control.off:
                text = f"{control.kind} never acted: none of the steps {control.where.steps!r} came up"
                warnings.warn(text, NoEffectWarning, stacklevel=4)

    def __repr__(self) -> str:
        lines = [f"Session on {type(self.pipe).__name__} ({self.architecture.name})"]
        for control, selected in zip(self.controls, self.selected, strict=True):
            labels = [site.label for site in self.sites if site.index in selected]
            lines.append(f"  {control.kind}: {len(labels)} of {len(self.sites)} blocks, {labels[0]} .. {labels[-1]}")
        return "\n".join(lines)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        if args:
            raise ControlError("call the transformer with keyword arguments while controls are attached")
        started, step = self._clock.tick(kwargs)
        layout = self.architecture.layout(kwargs)
        if started:
            make = self.architecture.reference_row
            self._memory, self._pictures = {}, self._references()
            self._rows = [make(self.pipe, picture, kwargs, layout) for picture in self._pictures]
        if self._rows:
            kwargs = self.architecture.widen(kwargs, self._rows, step.sigma, step.call)
        self.calls += 1
        call = self._describe(layout, step, kwargs)
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
        if not self._rows:
            return None
        extra = len(self._rows)
        if isinstance(output, tuple):
            return (output[0][extra:], *output[1:])
        output.sample = output.sample[extra:]
        return output

    def _references(self) -> tuple[Reference, ...]:
        wanted = [reference for control in self.controls if not control.off for reference in control.references()]
        return tuple({id(reference): reference for reference in wanted}.values())

    def _describe(self, layout: TokenLayout, step: Step, arguments: Arguments) -> Call:
        batch = arguments["hidden_states"].shape[0]
        halves = self.architecture.groups(arguments)
        groups = tuple((batch * i // halves, batch * (i + 1) // halves) for i in range(halves))

        def shifted(rows: int, columns: int) -> Rotary:
            return self.architecture.shifted(self.transformer, arguments, rows, columns)

        device = arguments["hidden_states"].device
        return Call(layout, step, groups, self.images_per_prompt, self._pictures, device, shifted, self._memory)


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
