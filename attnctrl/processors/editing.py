"""What editing methods share: the source's row beside the pictures' own, the pairs of rows, the region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from ..branch import Blend, Branch, Branches
from ..control import Call, Control, Family, Run
from ..effect import Effect, Features
from ..errors import ControlError
from ..guests import Guest
from ..region import Region
from ..source import Source, SourceGuest

if TYPE_CHECKING:
    from torch import Tensor

    from ..branch import Rows


class EditControl(Control):
    """Base of the controls that edit a source: its run is replayed in a row of its own beside the pictures.

    Every picture of the batch is an edit of the one source. `region` may be a text, of words in the source's prompt.
    """

    region: Region | None = Field(
        None, description="where the picture may change: words of the source's prompt, a box, a mask; none: everywhere"
    )

    family: ClassVar[Family] = "editing"
    order: ClassVar[int] = 20

    @field_validator("region", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return {"words": value} if isinstance(value, str) else value

    def guests(self, run: Run) -> Sequence[Guest]:
        """The source's row."""
        if run.source is None:
            raise ControlError(
                f"{self.kind} edits a picture, and none is open; use attnctrl edit, attnctrl.edit, or source=... "
                "with what attnctrl.open_source gave"
            )
        return [SourceGuest(run.source)]

    @property
    def weaker(self) -> str:
        """The setting to try where an edit did not take, as a user writes it; empty for none."""
        return ""

    def check(self, call: Call) -> None:
        """Raise ControlError where another control shows a part of the picture."""
        if call.layout.shown is not None:
            raise ControlError(f"{self.kind} edits the whole grid, and another control's view shows a part of it")

    def pairs(self, call: Call) -> Pairs:
        """The pictures' rows, each with the source's row of its half."""
        return call.once("edited pairs", lambda: _pairs(call))

    def touched(self, source: Source) -> list[float] | None:
        """How much of each image token of an edit may change, for what is measured and kept; None for everywhere."""
        return None if self.region is None else self.region.weights(source.grid, source.find)

    def inside(self, call: Call) -> Tensor | None:
        """How much each image token lies in the region [S_img]; None for everywhere."""
        return None if self.region is None else call.weights(self.region)


@dataclass(frozen=True)
class Pairs:
    """Row `targets.index[i]` is an edit of row `sources[i]`; int64 [T]. `others`: the rows that are no edits."""

    targets: Rows
    sources: Tensor
    others: Rows

    def replaced(self, x: Tensor, share: Tensor, at: Features, tokens: Tensor | None = None) -> Tensor:
        """`x` [B, S, H, D] whose targets' image tokens are the source's by `share` (broadcasts to [T, S_img, H, D]).

        tokens [S_img]: which of the source's stands in each place, None for its own. 0 and 1 are exact; heads that the
        gate leaves out keep their own.
        """
        import torch

        if at.gate is not None:
            share = share * at.gate.reshape(-1, 1)
        image = at.layout.image_of(x)
        given = image[self.sources] if tokens is None else image[self.sources][:, tokens]
        new = torch.lerp(image[self.targets.index], given, share.to(x.dtype))
        return at.layout.with_image(x, image.index_copy(0, self.targets.index, new))

    def reading(self, own: Branch, theirs: bool, tokens: Tensor | None = None, queries: Tensor | None = None) -> Branch:
        """What targets read, by `queries` [Q], of tokens [n] of the rows' own attention, their sources' or their own.

        None: all. Biases and masks of these keys come along.
        """
        return _part(own, self.sources if theirs else self.targets.index, self.targets, tokens, queries, not theirs)

    def instead(self, branches: Branches, new: Branches, at: Features, amount: Tensor | None = None) -> Branches:
        """`branches` with `new` in the place of the targets' own attention, the first of them.

        By `amount` [] and the gate's share of each head, if there are any: then both are computed and mixed.
        """
        first, *rest = branches
        assert isinstance(first, Branch)
        if amount is None and at.gate is None:
            kept = _part(first, self.others.index, self.others, own=True)
            return (kept, *new, *rest)
        share = (
            at.q.new_ones(len(self.sources), 1, 1, 1) if amount is None else amount.expand(len(self.sources), 1, 1, 1)
        )
        if at.gate is not None:
            share = share * at.gate.reshape(-1, 1)
        mixed = at.q.new_zeros(at.q.shape[0], *share.shape[1:])
        return (*branches, Blend((*new, *rest), mixed.index_copy(0, self.targets.index, share.to(mixed))))


@dataclass(frozen=True)
class KeysEffect(Effect):
    """The image keys and values of edits are the source's by `share`, which broadcasts to [T, S_img, H, D]."""

    pairs: Pairs
    share: Tensor

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """The two, for the pictures' rows."""
        return at.q, self.pairs.replaced(at.k, self.share, at), self.pairs.replaced(at.v, self.share, at)


def _part(
    branch: Branch,
    of: Tensor,
    rows: Rows,
    tokens: Tensor | None = None,
    queries: Tensor | None = None,
    own: bool = True,
) -> Branch:
    """What `rows` read, by `queries`, of tokens of rows `of` [T] of a branch of all rows; `own`: of their sequence."""
    import torch

    length = branch.key.shape[1]

    def chosen(x: Tensor) -> Tensor:
        return x[of] if tokens is None else x[of[:, None], tokens]

    def weighed(x: Tensor | None) -> Tensor | None:
        if x is None or x.ndim == 0:
            return x
        x = x.reshape((*[1] * (4 - x.ndim), *x.shape))
        x = x[of] if x.shape[0] > 1 else x
        x = x[:, :, queries] if queries is not None and x.shape[2] > 1 else x
        return x[..., tokens] if tokens is not None and x.shape[3] > 1 else x

    places = torch.arange(length, device=branch.key.device) if tokens is None else tokens
    rotary = branch.rotary
    if rotary is not None:
        cos, sin = (chosen(x) if x.ndim == 3 else x[places] for x in rotary)
        rotary = cos, sin
    return replace(
        branch, key=chosen(branch.key), value=chosen(branch.value), rows=rows, queries=queries, rotary=rotary,
        log_bias=weighed(branch.log_bias), mask=weighed(branch.mask), tokens=places if own else None,
    )  # fmt: skip


def _pairs(call: Call) -> Pairs:
    assert call.source is not None
    targets: list[int] = []
    sources: list[int] = []
    guest = SourceGuest(call.source)
    for start, stop in call.groups:
        own = range(start + len(call.guests), stop)
        targets += own
        sources += [start + call.row_of(guest)] * len(own)
    rest = [row for row in range(call.groups[-1][1]) if row not in targets]
    return Pairs(call.rows(targets), call.index(sources), call.rows(rest))
