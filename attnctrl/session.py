"""One session: the lifetime of attached controls, their clock, their guests' rows, and their removal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .bank import Bank
from .batch import narrowed, rows_in, widened
from .board import CallState, Placed
from .clock import CallerClock, Clock, SchedulerClock, SessionLock
from .control import Call, Control, Run
from .errors import ControlError, NoEffectWarning
from .guests import Guest, GuestRow
from .guidance import Pass
from .guide import Combiner, Guide
from .host import BareHost, Host
from .layout import Arguments, Layout, Site, Step
from .source import Source
from .station import Station
from .view import shown_tokens
from .words import Part, Prompts


class Session:
    """Controls installed on one pipeline. Made by `attached`; everything that changes during a run is here.

    prompts: what the rows say, for controls that name words. guidance_scale: g where the pipeline does not keep it.
    source: what controls edit.
    """

    def __init__(
        self,
        host: Host,
        controls: Sequence[Control],
        lock: SessionLock,
        images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        prompts: Prompts | None = None,
        source: Source | None = None,
    ) -> None:
        self.host, self.controls, self.prompts, self.source = host, tuple(controls), prompts, source
        self.images_per_prompt, self.guidance_scale = images_per_prompt, guidance_scale
        self.bank = Bank()
        several = len(host.transformers) > 1
        self.stations = [
            Station(name if several else "", transformer, host.edge, self.controls)
            for name, transformer in host.transformers.items()
        ]
        for position, control in enumerate(self.controls):
            if not any(station.selected[position] for station in self.stations):
                where = f"blocks={control.where.blocks!r}, heads={control.where.heads!r}"
                raise ControlError(f"{control.kind} selects no block or head: {where}")
        self.acted = [0] * len(self.controls)
        self.calls = 0
        self._lock = lock
        self._clock: Clock = CallerClock() if isinstance(host, BareHost) else SchedulerClock(host.pipe.scheduler)
        self._guests: tuple[Guest, ...] = ()
        self._rows: list[GuestRow] = []
        self._moves: dict[int, tuple[float, ...]] = {}
        self._now: Call | None = None
        self._perturbing: Station | None = None
        self._untaken: list[str] = []
        self._replaced: list[str] = []

    def install(self) -> None:
        """Replace the processors of the selected sites and hook the transformers."""
        for station in self.stations:
            station.install(self.host.device, self._before, self._after)

    def at(self, step: int, *, of: int, sigma: Tensor | float, conditional: bool | tuple[bool, ...] = True) -> None:
        """Set the clock for the next transformer calls, in a loop of one's own; the scheduler is not asked any more.

        step: from 0 within a run `of` so many; an earlier one than the last begins a run. sigma: the noise level in
        [0, 1].
        Every call at a step is an evaluation of it, which guides act in. conditional: whether the call carries the
        prompts, or for each half of its batch; one that does not (a negative pass) belongs to the evaluation before.
        """
        if not isinstance(self._clock, CallerClock):
            self._clock = CallerClock()
        self._clock.at(step, of, sigma, conditional)

    def sites_of(self, control: Control) -> list[Site]:
        """The attention sites that one of the session's controls chose."""
        position = next(i for i, one in enumerate(self.controls) if one is control)
        return [station.sites[place] for station in self.stations for place in station.selected[position]]

    def recorded(self, control: Control) -> Any:
        """What one of the session's controls recorded in the last run, handed over once; ControlError for nothing."""
        found = self.bank.take(control, "recording")
        if found is None:
            raise ControlError(f"{control.kind} recorded nothing: none of the steps {control.where.steps!r} came up")
        return found

    def remove(self) -> None:
        """Put the very processors back and drop everything that the run has stored."""
        self._untaken = [one.kind for one in self.controls if self.bank.get(one, "recording") is not None]
        self._replaced = [label for station in self.stations for label in station.remove()]
        self.bank.clear()
        self._rows, self._now = [], None

    def warn(self) -> None:
        """Say which controls never acted although the transformer ran, and which guidance has no effect or too much."""
        if self._replaced:
            text = f"attention processors were replaced while controls were attached ({self._replaced[0]} ..): the "
            warnings.warn(
                f"{text}model has its own from before again; set others outside", NoEffectWarning, stacklevel=3
            )
        for kind in self._untaken:
            text = f"what {kind} recorded was not taken and is lost: use attnctrl.observe or session.recorded(control)"
            warnings.warn(text, NoEffectWarning, stacklevel=3)
        for station in self.stations:
            if station.guidance:
                station.guidance.warn()
        for control, acted in zip(self.controls, self.acted, strict=True):
            if self.calls and not acted and not control.off:
                text = f"{control.kind} never acted: none of the steps {control.where.steps!r} came up"
                warnings.warn(text, NoEffectWarning, stacklevel=3)

    def __repr__(self) -> str:
        lines = [f"Session on {type(self.host.pipe).__name__} ({self.host.edge.name})"]
        for position, control in enumerate(self.controls):
            lines += [f"  {control.kind}: {station.said(position)}" for station in self.stations]
        return "\n".join(lines)

    def _before(self, station: Station, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments] | None:
        if station.board.foreign():
            self._wait(station)
            return None
        if self._perturbing is station:
            return None
        if args:
            raise ControlError("call the transformer with keyword arguments while controls are attached")
        edge = self.host.edge
        moment = self._clock.tick(kwargs[edge.batched.latents], self.host.continues(kwargs))
        step, layout = moment.step, edge.layout(station.transformer, kwargs)
        conditional = moment.conditional or self.host.conditional(kwargs, step.call)
        if moment.begins:
            self._start(station, kwargs, layout, len(conditional), step)
        if self._rows:
            kwargs = widened(edge.batched, kwargs, self._rows, step, conditional)
        self.calls += 1
        self._now = call = self._describe(station, layout, step, kwargs, conditional)
        shown = self._view(call)
        if shown is not None:
            kwargs = edge.viewed(kwargs, layout, shown)
            self._now = call = replace(call, layout=layout.viewed(shown.shape[-1]), arguments=kwargs)
        for position, control in enumerate(self.controls):
            if not control.off:
                control.check(call)
            self.acted[position] += self._acts(control, step)
        self._plan(station, call, shown)
        if station.guidance:
            station.guidance.begin(call, [one for one in station.guidance.passes if self._acts(one.guide, step)])
        return (), kwargs

    def _after(self, station: Station, kwargs: Arguments, output: Any) -> Any:
        if station.board.foreign() or self._perturbing is station or self._now is None:
            return None
        call = self._now
        if station.guidance:
            return station.guidance.after(call, kwargs, output, _Again(self, station, call))
        return narrowed(output, len(self._rows), len(call.groups))

    def _acts(self, control: Control, step: Step) -> bool:
        return not control.off and control.where.acts_at(step)

    def _plan(self, station: Station, call: Call, shown: Tensor | None, perturbing: Pass | None = None) -> None:
        """What processors read in a pass: everything that acts at this step, of the guides only the pass's own."""
        effects = tuple(
            control.plan(call)
            if self._acts(control, call.step)
            and (not isinstance(control, Guide) or (perturbing and perturbing.position == position))
            else None
            for position, control in enumerate(self.controls)
        )
        seen = {site.stream: call.layout.seen(site.sees) for site in station.sites}
        station.board.state = CallState(call.layout, seen, effects, self._places(call), shown)

    def _start(self, station: Station, arguments: Arguments, layout: Layout, halves: int, step: Step) -> None:
        """A new run: ask the controls for the rows that they want, and make them."""
        edge, on = self.host.edge, [control for control in self.controls if not control.off]
        pictures = rows_in(edge.batched, arguments) // halves
        run = Run(pictures, self.images_per_prompt, edge, station.transformer, layout, self.source)
        wanted = {guest.key: guest for control in on for guest in control.guests(run)}
        self._guests, self._moves = tuple(wanted.values()), {}
        for control in on:
            self._moves |= control.moves(run)
        self.bank.clear()
        self._rows = [guest.enter(self.host, arguments, layout) for guest in self._guests]
        for station in self.stations:
            station.refuse_meeting([replace(step, index=i) for i in range(step.count)])

    def _places(self, call: Call) -> Placed:
        """Rows that stand away, and by how many tokens an axis."""
        stands = {i: guest.shift for i, guest in enumerate(call.guests) if guest.shift}
        stands |= {len(call.guests) + row: shift for row, shift in self._moves.items()}
        grid = call.layout.grid
        return tuple(
            (start + row, tuple(round(n * size) for n, size in zip(shift, grid, strict=True)))
            for start, _ in call.groups
            for row, shift in stands.items()
        )

    def _view(self, call: Call) -> Tensor | None:
        """The tokens that a control's view leaves; ControlError for two views."""
        acting = [control for control in self.controls if self._acts(control, call.step)]
        views = {one.kind: shown for one in acting if (shown := one.view(call)) is not None}
        if len(views) > 1:
            raise ControlError(f"{' and '.join(views)} both choose which tokens run; use one of them")
        return shown_tokens(next(iter(views.values())), call.groups[-1][1], call.layout.size) if views else None

    def _describe(
        self, station: Station, layout: Layout, step: Step, arguments: Arguments, conditional: tuple[bool, ...]
    ) -> Call:
        batched = self.host.edge.batched
        batch, halves = rows_in(batched, arguments), len(conditional)
        groups = tuple((batch * i // halves, batch * (i + 1) // halves) for i in range(halves))
        return Call(
            layout, step, groups, self.images_per_prompt, self._guests, conditional, self.host.edge,
            station.transformer, arguments, arguments[batched.latents][0].device, self.bank, self._words,
            self._parts, source=self.source,
        )  # fmt: skip

    def _words(self, text: str, picture: int) -> tuple[int, ...]:
        """Text columns of words in a picture's prompt."""
        if self.prompts is None:
            raise ControlError(
                f"nobody says what the prompts are, so {text!r} cannot be found; attach with prompts=[...]"
            )
        return self.prompts.columns(self.host, text, picture // self.images_per_prompt)

    def _parts(self, picture: int) -> tuple[Part, ...]:
        """How a picture's prompt became tokens."""
        if self.prompts is None:
            raise ControlError(
                "nobody says what the prompts are, so words cannot be compared; attach with prompts=[...]"
            )
        return self.prompts.parts(self.host, picture // self.images_per_prompt)

    def _wait(self, station: Station) -> None:
        """Another thread's plain call: it waits until the session has ended, and keeps the next one out while it
        runs."""
        self._lock.wait()
        hooks: list[Any] = []

        def done(*unused: Any) -> None:
            hooks.pop().remove()
            self._lock.release()

        hooks.append(station.transformer.register_forward_hook(done, always_call=True))


class _Again:
    """A perturbed pass of a session's call on one station."""

    def __init__(self, session: Session, station: Station, call: Call) -> None:
        self.session, self.station, self.call = session, station, call

    def planned(self, one: Pass, arguments: Arguments) -> Call:
        """The call of the conditional rows alone, the guide's effect on the board."""
        call, session, board = self.call, self.session, self.station.board
        shown = None if board.state is None else board.state.shown
        again = replace(session._describe(self.station, call.layout, call.step, arguments, (True,)), perturbed=True)
        session._plan(self.station, again, shown, one)
        return again

    def scale(self, combiner: Combiner) -> float:
        """Guidance's g, from whoever says it."""
        found = self.session.host.guidance_scale or self.session.guidance_scale or combiner.guidance_scale
        if found is None:
            raise ControlError(f"{combiner.kind} must know the guidance: give it guidance_scale, the true_cfg_scale")
        return found

    def __enter__(self) -> None:
        self.session._perturbing = self.station

    def __exit__(self, *fault: object) -> None:
        self.session._perturbing = None
