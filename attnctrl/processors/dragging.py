"""Object dragging: DiffUHaul on joint attention, with keys re-identified at their new place (arXiv 2406.01594)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ..branch import Branch, Branches
from ..control import Call
from ..effect import Attended, Effect, Features
from ..errors import ControlError
from ..layout import Rotary
from ..moving import Moved
from ..registry import register
from ..source import Source
from .editing import EditControl, Pairs
from .wordweights import Apart, WeightsEffect

if TYPE_CHECKING:
    from torch import Tensor


@register
class Drag(EditControl):
    """Object dragging: what lies in the region moves, by an offset or into a box; the hole that it leaves is filled.

    Image tokens, s the source, P the source's token that belongs in each place (the object's in the target, the nearest
    one of the background in the hole, elsewhere its own):
    - first `anchor` of the steps: out_t <- lerp(out_s[P], out_t, tau), tau from 0 to 1;
    - later, in the target: out_t <- out_s[nn], nn the token of the source's object with the largest cosine;
    - always: the target's tokens read the source's object too, at its new place where keys are rotated, with odds
      `share` |target| / |object|; others read the source's background, with odds `share`;
    - the object's words (the region's, or `words`) are closed to image tokens outside of the target.
    Text tokens read as always.
    """

    kind: Literal["drag"] = "drag"
    by: tuple[float, float] | None = Field(None, description="how far right and down, as shares of the frame")
    to: tuple[float, float, float, float] | None = Field(
        None, description="or the box that its box goes into: left, top, right, bottom as shares of the frame"
    )
    anchor: float = Field(
        0.8, ge=0.0, le=1.0, description="share of the steps that are anchored: 0.4 as published, 0.8 moves it whole"
    )
    share: float = Field(1.0, ge=0.0, description="odds of the source's keys beside the picture's own")
    words: str = Field("", description="the object in the new prompt, where the region is not words of it")
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of it all; 0 is off, bit for bit")

    title: ClassVar[str] = "Drag an object (DiffUHaul)"
    source: ClassVar[str] = "arXiv 2406.01594"
    order: ClassVar[int] = 35
    claims: ClassVar[frozenset[str]] = frozenset({"what image tokens read"})

    @model_validator(mode="after")
    def _one_goal(self) -> Drag:
        if (self.by is None) == (self.to is None):
            raise ValueError("say where the object goes: by=right:down, or to=left:top:right:bottom")
        if self.to is not None:
            left, top, right, bottom = self.to
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(f"to {self.to}: write left, top, right, bottom as shares of the frame, 0 to 1")
        return self

    @property
    def weaker(self) -> str:
        """More of the steps."""
        return f"{self.kind} with anchor={min(1.0, self.anchor + 0.3):.2g}"

    def touched(self, source: Source) -> list[float] | None:
        """Where the object was and where it goes."""
        found = super().touched(source)
        if found is None:
            return None
        moved = Moved.over(found, (source.grid[-2], source.grid[-1]), self.by, self.to)
        return [1.0 if i in moved.target else share for i, share in enumerate(found)]

    def check(self, call: Call) -> None:
        """Raise ControlError for a drag of nothing."""
        super().check(call)
        if self.region is None:
            raise ControlError("drag moves an object, and none is given; give region=..., its words, box or mask")

    def plan(self, call: Call) -> DragEffect:
        """Anchored first, matched later."""
        import torch

        count = call.step.count
        early = call.step.index < self.anchor * count - 1e-9

        def shares() -> Tensor:
            anchored = max(self.anchor * count, 1)
            return torch.tensor([self.strength * (1 - i / anchored) for i in range(count)], device=call.device)

        held = call.once(("anchored", id(self)), shares)[call.step.index]
        places, shared, words = call.once(("drag", id(self), call.conditional), lambda: self._parts(call))
        return DragEffect(self.pairs(call), places, shared, words, held if early else None, self.strength)

    def _parts(self, call: Call) -> tuple[Places, tuple[SourceKeys, ...], WeightsEffect | None]:
        assert self.region is not None
        grid = call.layout.grid
        moved = Moved.over(call.weights(self.region).tolist(), (grid[-2], grid[-1]), self.by, self.to)
        ground = sorted(set(range(call.layout.size)) - set(moved.object))
        others = sorted(set(range(call.layout.size)) - set(moved.target))
        odds, pairs = self.share * self.strength, self.pairs(call)
        ratio = odds * len(moved.target) / len(moved.object)
        target, theirs, rest, behind = map(call.index, (moved.target, moved.object, others, ground))
        keys = (
            SourceKeys(pairs, target, theirs, self._table(call, moved), _log(ratio, call)),
            SourceKeys(pairs, rest, behind, None, _log(odds, call)),
        )
        places = Places(call.index(moved.places), target, theirs)
        return places, keys if odds else (), self._closed(call, others)

    def _table(self, call: Call, moved: Moved) -> Rotary:
        """Where the object's keys stand after the move; None where keys are not rotated."""
        if not call.rotary:
            return None
        positions = call.image_positions()[list(moved.object)].clone()
        corner = call.image_positions()[0]
        rows = [moved.position(*divmod(token, call.layout.grid[-1])) for token in moved.object]
        positions[:, -2:] = corner[-2:] + positions.new_tensor(rows)
        return call.table(positions)

    def _closed(self, call: Call, others: Sequence[int]) -> WeightsEffect | None:
        """The object's words, closed to image tokens outside of the target, in rows that carry prompts."""
        import torch

        said = self.words or (self.region.words if self.region else "")
        if not said or not any(call.conditional):
            return None
        starts = [start for (start, _), holds in zip(call.groups, call.conditional, strict=True) if holds]
        closed = torch.zeros(call.groups[-1][1], 1, 1, call.layout.length, device=call.device)
        change = torch.zeros(call.layout.length, 1, device=call.device)
        change[call.layout.image[0] + call.index(others)] = -self.strength
        apart = []
        for picture in range(call.pictures):
            rows = [start + len(call.guests) + picture for start in starts]
            columns = call.index(call.words(said, picture)) + call.layout.text[0]
            closed[call.index(rows)[:, None], 0, 0, columns] = -1
            apart.append(Apart(call.rows(rows), columns, change))
        return WeightsEffect(self.kind, closed, tuple(apart))


def _log(odds: float, call: Call) -> Tensor:
    import torch

    return torch.tensor(odds, device=call.device).log()


@dataclass(frozen=True)
class Places:
    """Image tokens: the source's `order` [S_img] for each place, the object's `target` [n] and `object` [m] before."""

    order: Tensor
    target: Tensor
    object: Tensor


@dataclass(frozen=True)
class SourceKeys:
    """Image tokens `queries` of the targets' rows read the source's image tokens `tokens`, at places of their own."""

    pairs: Pairs
    queries: Tensor
    tokens: Tensor
    rotary: Rotary
    log_bias: Tensor

    def branch(self, at: Features, own: Branch) -> Branch:
        """As a branch; heads that the gate leaves out read as much of it as it lets them."""
        start = at.layout.image[0]
        places, rows = start + self.tokens, self.pairs.targets
        rotary = self.rotary
        if rotary is None and own.rotary is not None:
            rotary = (own.rotary[0][places], own.rotary[1][places])
        key, value = (x[self.pairs.sources][:, places] for x in (at.k, at.v))
        bias = self.log_bias if at.gate is None else self.log_bias + at.gate.log()[:, None, None]
        return Branch(key, value, rows, start + self.queries, rotary, log_bias=bias)


@dataclass(frozen=True)
class DragEffect(Effect):
    """Keys of the source read beside, words closed, results anchored by `held` [], or matched where it is None."""

    pairs: Pairs
    places: Places
    shared: tuple[SourceKeys, ...]
    words: WeightsEffect | None
    held: Tensor | None
    strength: float

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """The source's keys, where they are read."""
        if self.words is not None:
            branches = self.words.branches(at, own, branches)
        return (*branches, *(one.branch(at, own) for one in self.shared))

    def output(self, at: Attended) -> Tensor:
        """The targets' image tokens anchored, or the object's replaced by what is most like them."""
        out = at.out()
        image, rows = at.layout.image_of(out), self.pairs.targets.index
        mine, theirs = image[rows], image[self.pairs.sources]
        amount: Tensor | float = self.strength if self.held is None else self.held
        if self.held is None:
            new = mine.index_copy(1, self.places.target, self._matched(mine, theirs))
        else:
            new = theirs[:, self.places.order]
        share = amount if at.gate is None else amount * at.gate.reshape(-1, 1)
        mixed = (mine + share * (new - mine)).to(image.dtype)
        return at.layout.with_image(out, image.index_copy(0, rows, mixed))

    def _matched(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """For each token of the target the source's object token of the largest cosine [T, n, H, D]."""
        from torch.nn.functional import normalize

        theirs = theirs[:, self.places.object]
        here, there = (normalize(x.flatten(2).float(), dim=-1) for x in (mine[:, self.places.target], theirs))
        best = (here @ there.transpose(1, 2)).argmax(-1)
        return theirs.gather(1, best[..., None, None].expand(-1, -1, *theirs.shape[2:]))
