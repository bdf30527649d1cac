"""Add-it: an edit reads the source beside itself, itself a little louder (arXiv 2411.07232)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..branch import Branch, Branches
from ..control import Call
from ..effect import Effect, Features
from ..registry import register
from ..where import Where
from .editing import EditControl, Pairs

if TYPE_CHECKING:
    from torch import Tensor

LEAST, MOST = 0.5, 2.0
"""Between which gamma is looked for."""
ROUNDS = 7
ASKED = 64
"""So many image tokens, evenly spread, say how the attention is shared out."""


@register
class AddIt(EditControl):
    """Add-it: edits read the source's image beside themselves, softmax(Q [K_source ; gamma K]^T) [V_source ; V].

    gamma is found anew for each picture in each attention, so that the edit's own image gets `ratio` times the
    attention that the source's image gets, on the mean over heads and image tokens; between 0.5 and 2. For objects that
    are added to a scene. strength is the odds of the source's tokens. With a region, image tokens inside of it do not
    read the source.
    """

    kind: Literal["addit"] = "addit"
    where: Where = Where(steps="0%-67%")
    gamma: Annotated[float, Field(gt=0.0, le=4.0)] | Literal["auto"] = Field(
        "auto", description="multiplies the edit's own keys; published 1.05 to 1.1, auto is found from the attention"
    )
    ratio: float = Field(1.05, gt=0.0, le=100.0, description="of own to source attention, that gamma=auto looks for")
    early: float = Field(0.34, ge=0.0, le=1.0, description="the share of the steps in which blocks before the late act")

    title: ClassVar[str] = "Add-it (adds an object)"
    source: ClassVar[str] = "arXiv 2411.07232"
    claims: ClassVar[frozenset[str]] = frozenset({"what edits read"})

    @property
    def weaker(self) -> str:
        """More of the edit itself."""
        return f"{self.kind} with ratio={self.ratio * 1.5:.2g}, or fewer steps"

    def plan(self, call: Call) -> AddItEffect:
        """Rows, odds, and the tokens that are asked."""
        closed, asked = call.once(("asked", id(self)), lambda: self._asked(call))
        odds = call.constant(math.log(self.strength), unless=0.0)
        gamma = None if self.gamma == "auto" else call.constant(self.gamma, unless=1.0)
        aim = self.ratio if self.gamma == "auto" else None
        early = call.step.index < self.early * call.step.count
        return AddItEffect(self.pairs(call), odds, closed, asked, gamma, aim, early)

    def _asked(self, call: Call) -> tuple[Tensor | None, Tensor]:
        """Log-bias [S_img] by which image tokens read the source, None where all do alike; the tokens [n] asked."""
        import torch

        inside = self.inside(call)
        free = torch.ones(call.layout.size, device=call.device) if inside is None else inside < 0.5
        reading = free.nonzero().flatten()
        asked = reading[:: max(1, math.ceil(len(reading) / ASKED))]
        return None if inside is None else torch.log1p(-inside), asked


@dataclass(frozen=True)
class AddItEffect(Effect):
    """The source's image as one more branch, own keys times `gamma` [].

    `odds` [] and `closed` [S_img], to image queries, are added to the source's logits. `aim`: the ratio of attention
    for which gamma is found, at image tokens `asked` [n]; `early`: whether blocks before the late act.
    """

    pairs: Pairs
    odds: Tensor | None
    closed: Tensor | None
    asked: Tensor
    gamma: Tensor | None
    aim: float | None
    early: bool

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """The row's own attention scaled for edits, and the source's image beside it."""
        import torch

        if not (at.site.late or self.early):
            return branches
        first, *rest = branches
        assert isinstance(first, Branch)
        pairs, (start, stop) = self.pairs, at.layout.image
        tokens = torch.arange(at.layout.length, device=at.q.device)
        if self.asked.numel() or self.aim is None:
            first = self._scaled(at, first, tokens)
        bias = self._bias(at)
        theirs = replace(pairs.reading(own, True, tokens[start:stop]), log_bias=bias, key_scale=None)
        return (first, *rest, theirs)

    def _bias(self, at: Features) -> Tensor | None:
        """What is added to the source's logits: [], or what broadcasts to [T, H, S, 1]."""
        import torch

        bias = self.odds
        if self.closed is not None:
            image = self.closed[None, :, None, None]
            by_query = at.layout.with_image(image.new_zeros(1, at.layout.length, 1, 1), image).transpose(1, 2)
            bias = by_query if bias is None else by_query + bias
        if at.gate is not None:
            heads = torch.where(at.gate > 0, 0.0, -math.inf).reshape(-1, 1, 1)
            bias = heads if bias is None else heads + bias
        return bias

    def _scaled(self, at: Features, first: Branch, tokens: Tensor) -> Branch:
        """Own keys of edits times gamma; of other rows, and of heads that the gate leaves out, as they are."""
        import torch

        count = len(self.pairs.sources)
        gamma = self._found(at) if self.aim is not None else self.gamma
        if gamma is None:
            return first
        gamma = gamma.expand(count).reshape(-1, 1, 1, 1)
        if at.gate is not None:
            gamma = torch.where(at.gate.reshape(-1, 1) > 0, gamma, 1.0)
        scale = gamma.new_ones(at.k.shape[0], *gamma.shape[1:]).index_copy(0, self.pairs.targets.index, gamma)
        return replace(first, key_scale=scale, tokens=tokens)

    def _found(self, at: Features) -> Tensor:
        """Gamma of each edit [T]: a root on the device, with no look at it from outside."""
        import torch

        from ..attention import attend_with_lse

        start, stop = at.layout.image
        mine, theirs = self.pairs.targets.index, self.pairs.sources
        keys = at.turned(at.k)
        q = at.turned(at.q)[mine][:, start + self.asked]
        image, text = keys[mine, start:stop], torch.cat([keys[mine, :start], keys[mine, stop:]], dim=1)
        heads = q.new_ones(q.shape[2]) if at.gate is None else (at.gate > 0).to(q)

        def lse(scale: Tensor | None, k: Tensor) -> Tensor:
            x = q if scale is None else q * scale.to(q).reshape(-1, 1, 1, 1)
            return attend_with_lse(x, k, k)[1]

        source = lse(None, keys[theirs, start:stop])
        for bias in (self.odds, None if self.closed is None else self.closed[self.asked]):
            source = source if bias is None else source + bias.to(source)

        def apart(gamma: Tensor) -> Tensor:
            """log(own / source) - log(ratio)."""
            own = lse(gamma, image)
            total = torch.logaddexp(own, source)
            if text.shape[1]:
                total = torch.logaddexp(total, lse(gamma, text))
            masses = (((x - total).exp().mean(-1) * heads).sum(-1) for x in (own, source))
            own_mass, source_mass = masses
            return own_mass.log() - source_mass.log() - math.log(self.aim or 1.0)

        return root(apart, q.new_full((len(theirs),), LEAST), q.new_full((len(theirs),), MOST))


def root(f: Callable[[Tensor], Tensor], least: Tensor, most: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Where f is 0 between two tensors, by the Illinois form of regula falsi; the nearer end where it has no root.

    A fixed number of rounds and no branching: nothing is read back from the device, and a compiled block has one graph.
    """
    import torch

    a, b = least, most
    fa, fb = first, last = f(a), f(b)
    for _ in range(rounds):
        slope = fb - fa
        step = torch.where(slope == 0, 0.0, fb * (b - a) / torch.where(slope == 0, 1.0, slope))
        c = (b - step).clamp(least, most)
        fc = f(c)
        crossed = fc * fb < 0
        a, fa = torch.where(crossed, b, a), torch.where(crossed, fb, fa / 2)
        b, fb = c, fc
    nearer = torch.where(first.abs() < last.abs(), least, most)
    return torch.where(first * last > 0, nearer, b)
