"""The call and velocity phases: perturbed passes within a step, and what the pipeline gets to see of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from .batch import narrowed, one_half, predicted, replaced
from .blocks import Blocks, Keeping, Streams, split
from .control import Call
from .errors import ControlError, NoEffectWarning, OverGuidanceWarning
from .guide import Combiner, Guide
from .layout import Arguments
from .statistics import widened

NOTHING = 1e-6
"""A perturbation that changes the prediction by less, of its norm, has no effect."""
TOO_MUCH = 1.5
"""Guidance that lets the prediction's norm grow by more burns pictures."""
ONE_FOR_ALL = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")
"""diffusers' caches that keep one store for all passes of a step."""


@dataclass(frozen=True)
class Pass:
    """A guide with its position among the controls and the blocks that it changes, the lowest first."""

    position: int
    guide: Guide
    blocks: tuple[int, ...]

    def before(self) -> int | None:
        """The block whose result starts the perturbed pass; None where it starts at the first block."""
        return self.blocks[0] - 1 if self.blocks[0] > 0 else None


class Again(Protocol):
    """What guidance needs of its session to run the transformer once more; in a `with` block it is a perturbed pass."""

    def planned(self, one: Pass, arguments: Arguments) -> Call:
        """The perturbed call, its effects on the board."""
        ...

    def scale(self, combiner: Combiner) -> float:
        """Classifier-free guidance's g; ControlError where nobody says it."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(self, *fault: object) -> None: ...


class Guidance:
    """What a session's guides and combiners do to the predictions of one run."""

    def __init__(self, transformer: Any, blocks: Blocks, passes: Sequence[Pass], combiners: Sequence[Combiner]) -> None:
        self.transformer, self.blocks = transformer, blocks
        self.passes, self.combiners = tuple(passes), tuple(combiners)
        self.acting: list[Pass] = []
        self.delta: Tensor | None = None
        self.cond: Tensor | None = None
        """The conditional prediction of this step, while a separate unconditional pass is to come."""
        self.moved: Tensor | None = None
        """By how much a combiner moved this step's conditional half, for SD3's skip-layer pass to move along."""
        self.replaced: bool | None = None
        """Whether a combiner has replaced the pipeline's guidance; None before it could."""
        self.seen: dict[int, Tensor] = {}
        self.growth: Tensor | None = None
        self._keeping: dict[int, Keeping] = {}

    @property
    def shares_prefix(self) -> bool:
        """Whether a perturbed pass may start above the first block: not under caches and whole-model compilation."""
        return not (hasattr(self.transformer, "_orig_mod") or self.cache or self.blocks.grouped)

    @property
    def cache(self) -> str | None:
        """The kind of diffusers' cache that is on."""
        config = getattr(self.transformer, "_cache_config", None)
        return None if config is None else type(config).__name__

    def begin(self, call: Call, acting: Sequence[Pass]) -> None:
        """Before a call: keep the results at which its perturbed passes start; an evaluation's first forgets the
        last."""
        first = call.step.call == 0
        self.acting = list(acting) if first and any(call.conditional) else []
        if first:
            self.delta = self.cond = self.moved = None
        if self.acting and self.cache in ONE_FOR_ALL:
            raise ControlError(f"a perturbed pass would read the others' {self.cache[:-6]}; use FirstBlockCacheConfig")
        if self.shares_prefix:
            starts = {start for one in self.acting if (start := one.before()) is not None}
            self._keeping = {i: self.blocks.keeping(i) for i in sorted(starts)}
            self.blocks.exchange(self._keeping)

    def after(self, call: Call, arguments: Arguments, output: Any, again: Again) -> Any:
        """What the pipeline gets to see of a call: guests dropped, perturbed passes run, the sum of this evaluation
        added."""
        halves = len(call.groups)
        output = narrowed(output, len(call.guests), halves)
        kept, rows = self.end(), predicted(output)
        half = call.conditional.index(True) if any(call.conditional) else -1
        for one in self.acting:
            streams = {i: split(value, halves, half) for i, value in kept.items()}
            part = one_half(call.edge.batched, arguments, half, halves)
            with self.around(one, again.planned(one, part), streams), self.cached(one), again:
                perturbed = predicted(narrowed(self.transformer(**part), len(call.guests), 1))
            self.add(one, rows.chunk(halves)[half], perturbed)
        self.watch(rows.chunk(halves)[half])
        return replaced(output, self.guided(self._combined(call, arguments, rows, again)))

    def _combined(self, call: Call, arguments: Arguments, rows: Tensor, again: Again) -> Tensor:
        """The predictions with a combiner's guidance in the place of the pipeline's own."""
        for combiner in self.combiners:
            if combiner.where.acts_at(call.step):
                latents = narrowed((arguments[call.edge.batched.latents],), len(call.guests), len(call.groups))[0]
                latents = latents[tuple(slice(0, size) for size in rows.shape)]
                rows = self.combined(combiner, call, rows, latents, again.scale(combiner))
        return rows

    def end(self) -> dict[int, Streams]:
        """After the first pass: the blocks are the model's own again; what was kept, by block."""
        self.blocks.restore()
        kept = {i: one.streams for i, one in self._keeping.items() if one.streams is not None}
        self._keeping = {}
        return kept

    def forget(self) -> None:
        """The blocks are the model's own, and no prediction of the run is kept."""
        self.end()
        self.acting, self.delta, self.cond, self.moved = [], None, None, None

    def around(self, one: Pass, call: Call, kept: Mapping[int, Streams]) -> AbstractContextManager[None]:
        """The blocks as the perturbed pass wants them: the shared ones passed over, the chosen ones changed."""
        others: dict[int, nn.Module] = {}
        start = one.before()
        if start is not None and start in kept:
            others |= {i: self.blocks.skipped(i) for i in range(start)}
            others[start] = self.blocks.given(start, kept[start])
        for i in one.blocks:
            change = one.guide.change(call, i)
            if change == "skip":
                self._may_skip(one.guide, i)
            if change is not None:
                others[i] = self.blocks.skipped(i) if change == "skip" else self.blocks.fed(i, change)
        return self.blocks.exchanged(others)

    def _may_skip(self, guide: Guide, block: int) -> None:
        why = None
        if self.blocks.grouped:
            why = "is offloaded in one group with others; offload with num_blocks_per_group=1"
        if self.cache and block in (0, len(self.blocks.own) - 1):
            why = f"keeps the {self.cache[:-6]}; choose blocks between the first and the last, or disable the cache"
        if why:
            raise ControlError(f"{guide.kind} cannot leave out block {block}, which {why}")

    def cached(self, one: Pass) -> AbstractContextManager[Any]:
        """A cache of its own for a perturbed pass, where the model has caches."""
        if self.cache:
            context: AbstractContextManager[Any] = self.transformer.cache_context(f"perturbed {one.position}")
            return context
        return nullcontext()

    def add(self, one: Pass, cond: Tensor, perturbed: Tensor) -> None:
        """Take one perturbed prediction into the sum: w (cond - perturbed)."""
        gap = widened(cond) - widened(perturbed)
        effect = (vector_norm(gap) / vector_norm(widened(cond)).clamp(min=1e-12)).detach()
        self.seen[one.position] = effect.maximum(self.seen[one.position]) if one.position in self.seen else effect
        part = one.guide.strength * gap
        self.delta = part if self.delta is None else self.delta + part

    def combined(self, combiner: Combiner, call: Call, rows: Tensor, latents: Tensor, scale: float) -> Tensor:
        """A prediction such that the pipeline's own formula gives the combiner's result."""
        if len(call.groups) == 2:
            both, half = both_halves(combiner, call, rows, latents, scale), call.conditional.index(True)
            self.moved, self.replaced = both.chunk(2)[half] - rows.chunk(2)[half], True
            return both
        if call.conditional == (False,) and self.cond is not None and scale != 1:
            self.replaced = True
            return second_pass(combiner, call, self.cond, rows, latents, scale)
        if call.conditional == (True,) and call.step.call == 0:
            self.cond, self.replaced = rows, bool(self.replaced)
        return rows if self.moved is None else rows + self.moved

    def guided(self, rows: Tensor) -> Tensor:
        """A prediction with the sum of this step added to every row; the same tensor without one."""
        if self.delta is None:
            return rows
        halves = len(rows) // len(self.delta)
        return (widened(rows) + self.delta.repeat(halves, *[1] * (rows.ndim - 1))).to(rows.dtype)

    def watch(self, cond: Tensor) -> None:
        """Keep by how much guidance lets the prediction's norm grow."""
        if self.delta is not None:
            grown = vector_norm(widened(cond) + self.delta) / vector_norm(widened(cond)).clamp(min=1e-12)
            self.growth = grown if self.growth is None else grown.maximum(self.growth)

    def warn(self) -> None:
        """Say which guides changed nothing, and whether guidance is too strong; on the meta device nobody knows."""
        if self.growth is not None and self.growth.is_meta:
            return
        for one in self.passes:
            if one.position in self.seen and self.seen[one.position].item() < NOTHING:
                text = f"{one.guide.kind} has no effect: the perturbed pass predicts the same; choose other heads"
                warnings.warn(text, NoEffectWarning, stacklevel=4)
        if self.replaced is False:
            text = f"{self.combiners[0].kind} has no effect: no unconditional prediction came; give a negative_prompt "
            warnings.warn(f"{text}and a true_cfg_scale over 1", NoEffectWarning, stacklevel=4)
        if self.growth is not None and (grown := self.growth.item()) > TOO_MUCH:
            text = f"guidance lets the prediction grow {grown:.1f} times; pictures may burn: lower strength or u"
            warnings.warn(text, OverGuidanceWarning, stacklevel=4)


def both_halves(combiner: Combiner, call: Call, rows: Tensor, latents: Tensor, scale: float) -> Tensor:
    """Both halves such that uncond + g (cond - uncond) is the combiner's result; g is not 0."""
    half = call.conditional.index(True)
    cond, uncond = rows.chunk(2)[half], rows.chunk(2)[1 - half]
    wanted = combiner.combine(call, cond, uncond, latents.chunk(2)[half], scale)
    halves = [uncond, uncond + (wanted - uncond) / scale]
    return torch.cat(halves if half == 1 else halves[::-1])


def second_pass(combiner: Combiner, call: Call, cond: Tensor, uncond: Tensor, latents: Tensor, scale: float) -> Tensor:
    """What a separate unconditional pass returns, such that it + g (cond - it) is the combiner's result; g is not 1."""
    return (combiner.combine(call, cond, uncond, latents, scale) - scale * cond) / (1 - scale)
