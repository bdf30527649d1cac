"""One session: the lifetime of attached controls, their clock, their extra rows, and their removal."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .architecture import Architecture
from .blocks import Blocks, Streams
from .clock import Clock
from .control import Added, Call, Control, Effect, Placed, Rotary
from .errors import ConflictError, ControlError, NoEffectWarning
from .guidance import Guidance, Pass
from .guide import Combiner, Guide
from .layout import Arguments, Site, Step, TokenLayout
from .rows import AddedRow, CopyRow, OpposedRow, narrowed, one_half, predicted, replaced, widened
from .where import Where


@dataclass(frozen=True)
class CallState:
    """What processors read: the layout and, by position of the control, its effect (None: not at this step)."""

    layout: TokenLayout
    effects: tuple[Effect | None, ...]


class Session:
    """Controls installed on one pipeline. Made by `attached`; everything that changes during a run is here."""

    def __init__(
        self,
        pipe: Any,
        architecture: Architecture,
        controls: Sequence[Control],
        images_per_prompt: int = 1,
        guidance_scale: float | None = None,
    ) -> None:
        self.pipe, self.architecture, self.controls = pipe, architecture, tuple(controls)
        self.images_per_prompt, self.guidance_scale = images_per_prompt, guidance_scale
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
        self._clock = Clock(pipe)
        self._rows: list[AddedRow] = []
        self._added: tuple[Added, ...] = ()
        self._moved: tuple[Placed, ...] = ()
        self._guidance = self._guides()
        self._now: Call | None = None
        self._perturbing = False
        self._memory: dict[Hashable, Any] = {}
        self._stock: dict[int, Any] = {}
        self._hooks: list[Any] = []
        self._untaken: list[str] = []

    def install(self) -> None:
        """Replace the processors of the selected sites and hook the transformer."""
        device = _device(self.pipe)
        processors = {}
        for place, site in enumerate(self.sites):
            gates = []
            for position, selected in enumerate(self.selected):
                if place in selected and self.controls[position].attends:
                    gates.append((position, self.controls[position].gate(site, selected[place], device)))
            if gates:
                processors[place] = self.architecture.processor(site, self, tuple(gates))
        for place, processor in processors.items():
            self._stock[place] = self.sites[place].module.processor
            self.sites[place].module.processor = processor
        register = self.transformer.register_forward_pre_hook
        self._hooks = [
            register(self._before, with_kwargs=True),
            self.transformer.register_forward_hook(self._after, with_kwargs=True),
            *self.architecture.position_hooks(self.transformer, self),
        ]

    def recorded(self, control: Control) -> Any:
        """What one of the session's controls recorded in the last run, handed over once; ControlError for nothing."""
        found = self._memory.pop(("recording", id(control)), None)
        if found is None:
            raise ControlError(f"{control.kind} recorded nothing: none of the steps {control.where.steps!r} came up")
        return found

    def remove(self) -> None:
        """Put the very processors back and drop everything that the run has stored."""
        self._untaken = [one.kind for one in self.controls if ("recording", id(one)) in self._memory]
        for hook in self._hooks:
            hook.remove()
        for place, stock in self._stock.items():
            self.sites[place].module.processor = stock
        if self._guidance:
            self._guidance.forget()
        self._hooks, self._stock, self._rows, self._memory, self.call, self.placed = [], {}, [], {}, None, ()
        self._now = None

    def warn(self) -> None:
        """Say which controls never acted although the transformer ran, and which guidance has no effect or too much."""
        for kind in self._untaken:
            text = f"what {kind} recorded was not taken and is lost: use attnctrl.observe or session.recorded(control)"
            warnings.warn(text, NoEffectWarning, stacklevel=4)
        if self._guidance:
            self._guidance.warn()
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

    def _guides(self) -> Guidance | None:
        passes, combiners = [], []
        for position, (control, selected) in enumerate(zip(self.controls, self.selected, strict=True)):
            if isinstance(control, Guide) and not control.off:
                passes.append(Pass(position, control, tuple(sorted({self.sites[place].index for place in selected}))))
            if isinstance(control, Combiner) and not control.off:
                combiners.append(control)
        blocks = Blocks(self.architecture.blocks(self.transformer))
        return Guidance(self.transformer, blocks, passes, combiners) if passes or combiners else None

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[()], Arguments] | None:
        if self._perturbing:
            return None
        if args:
            raise ControlError("call the transformer with keyword arguments while controls are attached")
        started, step = self._clock.tick(kwargs)
        layout = self.architecture.layout(self.transformer, kwargs)
        conditional = self.architecture.conditional(self.pipe, kwargs, step.call)
        if started:
            self._start(kwargs, layout, len(conditional))
        if self._rows:
            kwargs = widened(kwargs, self._rows, step.sigma, conditional, kwargs["hidden_states"].shape[0])
        self.calls += 1
        self._now = call = self._describe(layout, step, kwargs, conditional)
        for position, control in enumerate(self.controls):
            if not control.off:
                control.check(call)
            self.acted[position] += self._acts(control, step)
        self._plan(call)
        if self._guidance:
            acting = [one for one in self._guidance.passes if self._acts(one.guide, step)]
            self._guidance.begin(acting if step.call == 0 and any(conditional) else [], step.call == 0)
        return (), kwargs

    def _acts(self, control: Control, step: Step) -> bool:
        return not control.off and control.where.acts_at(step)

    def _plan(self, call: Call, perturbing: Pass | None = None) -> None:
        """What processors read in a pass: everything that acts at this step, of the guides only the pass's own."""
        self.placed = self._places(call)
        self.call = CallState(
            call.layout,
            tuple(
                control.plan(call)
                if self._acts(control, call.step)
                and (not isinstance(control, Guide) or (perturbing and perturbing.position == position))
                else None
                for position, control in enumerate(self.controls)
            ),
        )

    def _after(self, module: nn.Module, args: Any, kwargs: Arguments, output: Any) -> Any:
        if self._perturbing or self._now is None:
            return None
        call = self._now
        output = narrowed(output, len(self._rows), len(call.groups)) if self._rows else output
        if self._guidance is None:
            return output
        kept = self._guidance.end()
        rows = predicted(output)
        for one in self._guidance.acting:
            half = call.conditional.index(True)
            self._guidance.add(one, rows.chunk(len(call.groups))[half], self._perturbed(one, call, kwargs, half, kept))
        self._guidance.watch(rows.chunk(len(call.groups))[-1])
        return replaced(output, self._guidance.guided(self._combined(call, kwargs, rows)))

    def _perturbed(self, one: Pass, call: Call, arguments: Arguments, half: int, kept: dict[int, Streams]) -> Tensor:
        """The prediction of the conditional rows in a pass that the guide worsens."""
        assert self._guidance
        halves = len(call.groups)
        part = one_half(arguments, half, halves, arguments["hidden_states"].shape[0])
        streams = {
            i: (None if text is None else text.chunk(halves)[half], image.chunk(halves)[half])
            for i, (text, image) in kept.items()
        }
        again = replace(self._describe(call.layout, call.step, part, (True,)), perturbed=True)
        self._plan(again, one)
        self._perturbing = True
        try:
            with self._guidance.around(one, again, streams), self._guidance.cached(one):
                output = self.transformer(**part)
        finally:
            self._perturbing = False
        return predicted(narrowed(output, len(self._rows), 1))

    def _combined(self, call: Call, arguments: Arguments, rows: Tensor) -> Tensor:
        """The predictions with a combiner's guidance in the place of the pipeline's own."""
        assert self._guidance
        for combiner in self._guidance.combiners:
            if not self._acts(combiner, call.step):
                continue
            scale = self.architecture.guidance_scale(self.pipe) or self.guidance_scale or combiner.guidance_scale
            latents = narrowed((arguments["hidden_states"],), len(self._rows), len(call.groups))[0]
            latents = latents[tuple(slice(0, size) for size in rows.shape)]
            if scale is None:
                raise ControlError(
                    f"{combiner.kind} must know the guidance: give it guidance_scale, the true_cfg_scale"
                )
            rows = self._guidance.combined(combiner, call, rows, latents, scale)
        return rows

    def _start(self, arguments: Arguments, layout: TokenLayout, halves: int) -> None:
        """A new run: ask the controls for the rows that they want, and make them."""
        on = [control for control in self.controls if not control.off]
        pictures = {id(one): one for control in on for one in control.references()}
        rotary, images = self.architecture.rotary, self.images_per_prompt
        placed = [one for control in on for one in control.placed(rotary, images)]
        self._moved = tuple(one for i, one in enumerate(placed) if one not in placed[:i])
        against = [one for control in on for one in control.opposed(arguments["hidden_states"].shape[0] // halves)]
        self._added = (*pictures.values(), *(one for one in self._moved if one.copy), *against)
        make, said = self.architecture.picture_row, self.architecture.encoded_prompt
        self._rows = [make(self.pipe, picture, arguments, layout) for picture in pictures.values()]
        self._rows += [CopyRow(one.of) for one in self._moved if one.copy and isinstance(one.of, int)]
        texts = {one.prompt: said(self.pipe, one.prompt, arguments)[0] for one in against}
        self._rows += [OpposedRow(one.of, texts[one.prompt]) for one in against]
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

    def _describe(self, layout: TokenLayout, step: Step, arguments: Arguments, conditional: tuple[bool, ...]) -> Call:
        batch, halves = arguments["hidden_states"].shape[0], len(conditional)
        groups = tuple((batch * i // halves, batch * (i + 1) // halves) for i in range(halves))

        def shifted(rows: int, columns: int) -> Rotary:
            return self.architecture.shifted(self.transformer, arguments, rows, columns)

        device = arguments["hidden_states"].device
        rotary, added, images = self.architecture.rotary, self._added, self.images_per_prompt
        return Call(layout, step, groups, images, added, conditional, rotary, device, shifted, self._memory)


def _device(pipe: Any) -> Any:
    """Where the transformer runs, which under offloading is not where its weights lie."""
    own = next(pipe.transformer.parameters()).device
    return own if own.type not in ("cpu", "meta") else getattr(pipe, "_execution_device", own)


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
