"""Mutual attention: edits read the source's keys and values; by region, the part that stands where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from ..branch import Blend, Branch, Branches
from ..control import Call
from ..effect import Effect, Features
from ..region import Region
from ..source import Source
from .editing import EditControl, Pairs

if TYPE_CHECKING:
    from torch import Tensor


class MutualControl(EditControl):
    """Base of DiTCtrl and MasaCtrl: out = fg M + bg (1 - M), fg reads the source inside its region, bg outside of it.

    M is the region in the edit, `target_region`. Text is read by every image token, and reads everything.
    """

    region: Region | None = Field(
        None, description="the object in the source: words of its prompt, a box, a mask; none: not told apart"
    )
    target_region: Region | None = Field(
        None, description="where the object is in the edit, if not in the same place; words of the source's prompt too"
    )
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of the edit's attention is replaced; 0 is off")

    claims: ClassVar[frozenset[str]] = frozenset({"what edits read"})

    @field_validator("target_region", mode="before")
    @classmethod
    def _target_words(cls, value: Any) -> Any:
        return {"words": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_regions(self) -> MutualControl:
        if self.target_region is not None and self.region is None:
            raise ValueError("target_region says where the region is in the edit, and there is no region; give both")
        return self

    def touched(self, source: Source) -> list[float] | None:
        """Where the object was and where it is."""
        found = super().touched(source)
        if found is None or self.target_region is None:
            return found
        return list(map(max, found, self.target_region.weights(source.grid, source.find)))

    def parts(self, call: Call) -> Parts | None:
        """Image tokens by region; None without one."""
        return call.once(("parts", id(self)), lambda: self._parts(call))

    def _parts(self, call: Call) -> Parts | None:
        inside = self.inside(call)
        if inside is None:
            return None
        share = inside if self.target_region is None else call.weights(self.target_region)
        there = inside > 0.5
        inside, outside = share == 1, share == 0
        found = [mask.nonzero().flatten() for mask in (there, ~there, inside, outside, ~(inside | outside))]
        return Parts(found[0], found[1], found[2], found[3], found[4], share)


@dataclass(frozen=True)
class Parts:
    """Image tokens [n]: the source's inside and outside of its region, the edit's inside, outside and on the edge.

    `share` [S_img]: how much of each token of the edit lies inside.
    """

    there: Tensor
    elsewhere: Tensor
    inside: Tensor
    outside: Tensor
    edge: Tensor
    share: Tensor


@dataclass(frozen=True)
class MutualEffect(Effect):
    """The edits' attention to the source's keys; their own text's, or the source's (`all_theirs`)."""

    pairs: Pairs
    parts: Parts | None
    amount: Tensor | None
    all_theirs: bool

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """The edits' own attention replaced."""
        first = branches[0]
        assert isinstance(first, Branch)
        if self.parts is None:
            new: Branches = (self.pairs.reading(first, theirs=True),)
        else:
            new = self._guided(self.parts, at, first)
        return self.pairs.instead(branches, new, at, self.amount)

    def _guided(self, parts: Parts, at: Features, own: Branch) -> Branches:
        """By region: no key is read by a query that may not, and no mask is made."""
        import torch

        start, stop = at.layout.image
        tokens = torch.arange(at.layout.length, device=at.q.device)
        image, text = tokens[start:stop], torch.cat([tokens[:start], tokens[stop:]])

        def read(keys: Tensor, queries: Tensor) -> list[Branch]:
            """Image keys, and the text's."""
            if not len(queries):
                return []
            found = [self.pairs.reading(own, True, keys, queries)] if len(keys) else []
            return [*found, *([self.pairs.reading(own, self.all_theirs, text, queries)] if len(text) else [])]

        there, elsewhere = (
            keys + start if len(keys) or len(text) else image for keys in (parts.there, parts.elsewhere)
        )
        outside = torch.cat([parts.outside, parts.edge])
        new: list[Branch | Blend] = [
            *read(image, text), *read(there, parts.inside + start), *read(elsewhere, outside + start)
        ]  # fmt: skip
        if len(parts.edge):
            mixed = at.q.new_zeros(at.q.shape[0], at.layout.length, 1, 1)
            mixed[self.pairs.targets.index[:, None], parts.edge + start, 0, 0] = parts.share[parts.edge].to(mixed)
            new.append(Blend(tuple(read(there, parts.edge + start)), mixed))
        return tuple(new)
