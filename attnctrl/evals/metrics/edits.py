"""Metrics of edits: what the embedded judges read, what changed elsewhere, structure, and edits that did not happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...errors import ControlError
from ..objectives import Models
from .metric import DrawnSet

if TYPE_CHECKING:
    from ..edits.jury import Jury
    from ..edits.sets import EditCase


@dataclass(frozen=True, eq=False)
class DrawnEdit:
    """An edit that was drawn: `source`, the edited `picture`, RGB.

    `region`: where the method might change it, grey (None: everywhere), `named` where it is of words; `changing`: where
    it should change, `still`: where it should not, both bool [H, W], and None where that is not known. `took`: whether
    a change is to be seen; `sound`: whether the source is read as asked (None: its truth is not known). `jury` judges.
    """

    case: EditCase
    source: Image.Image
    picture: Image.Image
    region: Image.Image | None
    named: bool
    changing: np.ndarray | None
    still: np.ndarray | None
    took: bool
    sound: bool | None
    jury: Jury | None

    @cached_property
    def right(self) -> tuple[bool, bool | None] | None:
        """Whether the change is read as asked, and whether the rest is; None where the source is not."""
        from ..edits.jury import done

        if self.jury is None or self.case.after is None or not self.sound:
            return None
        return done(self.jury, self.case, self.picture)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What it was drawn with."""
        return self.case.prompts

    @property
    def as_set(self) -> DrawnSet:
        """The edited picture alone, under its prompt."""
        return DrawnSet(prompts=self.case.prompts, pictures=[self.picture])

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and edit as uint8 [H, W, 3]."""
        return np.asarray(self.source), np.asarray(self.picture)


def make(name: str, argument: str, models: Models) -> Callable[[DrawnEdit], float | None]:
    """The metric of an edit in kinds.KINDS; ControlError for extras not installed."""
    try:
        from ..edits import likeness  # noqa: F401 - OpenCV and scikit-image
    except ImportError as fault:
        raise ControlError(f"{name} needs {fault.name or fault}: pip install 'attnctrl[train,eval]'") from fault
    return _MEASURES[name]


def _success(drawn: DrawnEdit) -> float | None:
    return None if drawn.right is None else float(drawn.right[0])


def _rest(drawn: DrawnEdit) -> float | None:
    return None if drawn.right is None or drawn.right[1] is None else float(drawn.right[1])


def _sound(drawn: DrawnEdit) -> float | None:
    return None if drawn.sound is None else float(drawn.sound)


def _untaken(drawn: DrawnEdit) -> float | None:
    return None if drawn.case.source == drawn.case.target else float(not drawn.took)


def _psnr(drawn: DrawnEdit) -> float | None:
    from ..edits.likeness import psnr

    return None if drawn.still is None else psnr(*drawn.arrays, drawn.still)


def _ssim(drawn: DrawnEdit) -> float | None:
    from ..edits.likeness import ssim

    return None if drawn.still is None else ssim(*drawn.arrays, drawn.still)


def _structure(drawn: DrawnEdit) -> float | None:
    from ..edits.likeness import canny_ssim

    return canny_ssim(*drawn.arrays)


def _iou(drawn: DrawnEdit) -> float | None:
    from ..edits.likeness import overlap

    if drawn.region is None or drawn.changing is None or not drawn.named or not drawn.sound:
        return None
    return overlap(np.asarray(drawn.region) > 127, drawn.changing)


_MEASURES: dict[str, Callable[[DrawnEdit], float | None]] = {
    "edit-success": _success,
    "rest-as-asked": _rest,
    "source-as-asked": _sound,
    "untaken": _untaken,
    "background-psnr": _psnr,
    "background-ssim": _ssim,
    "canny-ssim": _structure,
    "region-iou": _iou,
}
