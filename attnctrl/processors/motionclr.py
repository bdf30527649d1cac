"""MotionCLR's edits on pictures: exchange in place, move the scene, keep the structure, vary (arXiv 2410.18977)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..aligning import aligned_columns
from ..control import Call
from ..effect import Effect, Features
from ..errors import ControlError
from ..registry import register
from ..where import Where
from .editing import EditControl, Pairs

if TYPE_CHECKING:
    from torch import Tensor

QUERIES, KEYS, VALUES = "the image queries", "the image keys", "the image values"


class _FromSource(EditControl):
    """What the four have in common: early steps, and how much of it."""

    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of it all; 0 is off, bit for bit")

    source: ClassVar[str] = "arXiv 2410.18977"
    claims: ClassVar[frozenset[str]] = frozenset({QUERIES, KEYS, VALUES})

    @property
    def weaker(self) -> str:
        """Half of it."""
        return f"{self.kind} with strength={self.strength / 2:.2g}, or fewer steps"

    def _shares(self, call: Call) -> tuple[Tensor, Tensor]:
        """How much of the source's features tokens take everywhere, and outside of the region alone [S_img, 1, 1]."""
        import torch

        inside = self.inside(call)
        everywhere = torch.full((call.layout.size, 1, 1), self.strength, device=call.device)
        outside = torch.zeros_like(everywhere) if inside is None else everywhere * (1 - inside[:, None, None])
        return everywhere, outside


@register
class Exchange(_FromSource):
    """In-place replacement: another word where the source had its own, by the source's map of attention.

    Image q and k take the source's, and so do the text's keys of words that both prompts share: the map of image tokens
    is the source's but for the columns of other words; values are the target's. Outside of a region image values take
    the source's too. Rows without prompts share all their text.
    """

    kind: Literal["exchange"] = "exchange"
    where: Where = Where(steps="0%-40%")

    title: ClassVar[str] = "Exchange in place (MotionCLR)"

    def plan(self, call: Call) -> SourceEffect:
        """Features of every row."""
        return call.once(("exchange", id(self), call.conditional), lambda: self._effect(call))

    def _effect(self, call: Call) -> SourceEffect:
        everywhere, outside = self._shares(call)
        return SourceEffect(self.pairs(call), everywhere, everywhere, outside, text=tuple(self._texts(call)))

    def _texts(self, call: Call) -> Sequence[Text]:
        assert call.source is not None
        text, pairs, found = call.layout.text, self.pairs(call), []
        for row, source in zip(pairs.targets.numbers, pairs.sources.tolist(), strict=True):
            half = next(i for i, (_, stop) in enumerate(call.groups) if row < stop)
            picture = row - call.groups[half][0] - len(call.guests)
            columns = [(i, i) for i in range(text[1] - text[0])]
            if call.conditional[half]:
                columns = list(aligned_columns(call.source.texts, call.parts(picture)))
            theirs, mine = ([text[0] + pair[side] for pair in columns] for side in (0, 1))
            found.append(Text(row, source, call.index(theirs), call.index(mine), self.strength))
        return found


@register
class MoveScene(_FromSource):
    """Sequence shift: the whole scene moves; what leaves the frame comes in on the other side.

    Image q, k, v take the source's, rolled over the grid before positions are put in: softmax(roll q_s (roll k_s)^T)
    roll v_s, in the first steps. Where a region is given it holds for the tokens inside. MotionCLR rolls the target's
    own, which layer upon layer smears a picture.
    """

    kind: Literal["move-scene"] = "move-scene"
    where: Where = Where(steps="0%-50%")
    by: tuple[float, float] = Field(description="how far right and down, as shares of the frame")

    title: ClassVar[str] = "Move the scene (MotionCLR)"

    def plan(self, call: Call) -> SourceEffect:
        """Rolled features."""
        return call.once(("move", id(self)), lambda: self._effect(call))

    def _effect(self, call: Call) -> SourceEffect:
        rows, columns = call.layout.grid[-2:]
        down, right = round(self.by[1] * rows) % rows, round(self.by[0] * columns) % columns
        if (down, right) == (0, 0):
            raise ControlError(
                f"move-scene: by={self.by[0]:g}:{self.by[1]:g} is no token of the {rows} x {columns} grid, or all of it"
            )
        place = call.index(range(call.layout.size)).reshape(call.layout.grid).roll((down, right), (-2, -1)).flatten()
        everywhere, outside = self._shares(call)
        share = everywhere - outside
        return SourceEffect(self.pairs(call), share, share, share, (place, place, place))


@register
class KeepStructure(_FromSource):
    """Structure of the source with the look of the new prompt: image q take the source's, k and v are the target's own.

    MotionCLR's style transfer. Outside of a region k and v take the source's too.
    """

    kind: Literal["structure"] = "structure"
    where: Where = Where(steps="0%-60%")

    title: ClassVar[str] = "Keep the structure (MotionCLR)"

    def plan(self, call: Call) -> SourceEffect:
        """Features of every row."""
        return call.once(("structure", id(self)), lambda: self._effect(call))

    def _effect(self, call: Call) -> SourceEffect:
        everywhere, outside = self._shares(call)
        return SourceEffect(self.pairs(call), everywhere, outside, outside)


@register
class Vary(_FromSource):
    """By example: the same parts in another order; image q take the source's, their tiles shuffled by a seed.

    k and v are the target's own. With a region only tiles that lie in it are shuffled, among themselves, and outside k
    and v take the source's. In one tenth of the steps, as published; on the embedded models that softens the picture,
    and earlier ones (steps=0%-30%) put its parts elsewhere.
    """

    kind: Literal["vary"] = "vary"
    where: Where = Where(steps="60%-70%")
    tile: int = Field(2, ge=1, le=256, description="tokens a side of a tile; a smaller rest at the edges stays")
    seed: int = Field(0, ge=0, description="of the order; another one is another variation")

    title: ClassVar[str] = "Vary by example (MotionCLR)"

    def plan(self, call: Call) -> SourceEffect:
        """Shuffled queries."""
        return call.once(("vary", id(self)), lambda: self._effect(call))

    def _effect(self, call: Call) -> SourceEffect:
        everywhere, outside = self._shares(call)
        return SourceEffect(self.pairs(call), everywhere, outside, outside, (self._order(call), None, None))

    def _order(self, call: Call) -> Tensor:
        """Which token's query stands in each place [S_img]."""
        import torch

        (rows, columns), side, inside = call.layout.grid[-2:], self.tile, self.inside(call)
        free = torch.ones(rows, columns) if inside is None else inside.cpu().reshape(rows, columns)
        place = torch.arange(rows * columns).reshape(rows, columns)
        corners = [(y, x) for y in range(0, rows - side + 1, side) for x in range(0, columns - side + 1, side)]
        tiles = [place[y : y + side, x : x + side] for y, x in corners if free[y : y + side, x : x + side].min() >= 0.5]
        if len(tiles) < 2:
            raise ControlError(f"vary: fewer than two tiles of {side} x {side} tokens to shuffle; take smaller tiles")
        order, given = place.flatten().clone(), torch.Generator().manual_seed(self.seed)
        for there, here in enumerate(torch.randperm(len(tiles), generator=given).tolist()):
            order[tiles[there].flatten()] = tiles[here].flatten()
        return order.to(call.device)


@dataclass(frozen=True)
class Text:
    """Row `target`'s text keys at `mine` [n] take row `source`'s at `theirs` [n], by a share."""

    target: int
    source: int
    theirs: Tensor
    mine: Tensor
    share: float


@dataclass(frozen=True)
class SourceEffect(Effect):
    """Image q, k, v take the source's by shares [S_img, 1, 1], of the tokens `places` (three, None: of their own)."""

    pairs: Pairs
    queries: Tensor
    keys: Tensor
    values: Tensor
    places: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    text: tuple[Text, ...] = ()

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """The three."""
        shares = self.queries, self.keys, self.values
        q, k, v = (
            self.pairs.replaced(x, share, at, place)
            for x, share, place in zip((at.q, at.k, at.v), shares, self.places, strict=True)
        )
        return q, self._texted(k, at), v

    def _texted(self, k: Tensor, at: Features) -> Tensor:
        if at.layout.text == (0, 0) or not self.text:
            return k
        new = k.clone()
        for one in self.text:
            own, share = k[one.target, one.mine], one.share if at.gate is None else one.share * at.gate[:, None]
            new[one.target, one.mine] = (own + share * (k[one.source, one.theirs] - own)).to(k.dtype)
        return new
