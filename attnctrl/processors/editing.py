"""What editing methods share: the source's row beside the pictures' own, the pairs of rows, the region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from ..control import Call, Control, Family, Run
from ..effect import Features
from ..errors import ControlError
from ..guests import Guest
from ..region import Region
from ..source import SourceGuest

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

    def inside(self, call: Call) -> Tensor | None:
        """How much each image token lies in the region [S_img]; None for everywhere."""
        return None if self.region is None else call.weights(self.region)


@dataclass(frozen=True)
class Pairs:
    """Row `targets.index[i]` is an edit of row `sources[i]`; int64 [T]."""

    targets: Rows
    sources: Tensor

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


def _pairs(call: Call) -> Pairs:
    assert call.source is not None
    targets: list[int] = []
    sources: list[int] = []
    guest = SourceGuest(call.source)
    for start, stop in call.groups:
        own = range(start + len(call.guests), stop)
        targets += own
        sources += [start + call.row_of(guest)] * len(own)
    return Pairs(call.rows(targets), call.index(sources))
