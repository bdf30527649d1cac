"""Metrics of the embedded world: its judges' readings of style parameters, styles and subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ControlError
from ..objectives import Models
from .metric import DrawnSet

if TYPE_CHECKING:
    from ...embedded.judge import Judge
    from ...embedded.subjects import Seen, SubjectJudge

LARGEST, _CELL = 128, 8


def make(name: str, argument: str, models: Models) -> Callable[[DrawnSet], float | None]:
    """`style-agreement`, `style-as-asked`, `subject-as-asked` or `leakage`; ControlError for extras not installed."""
    try:
        from ...embedded.judge import Judge
        from ...embedded.subjects import SubjectJudge

        if name.startswith("style"):
            judge, read = models.get(Judge.load), agreement if name == "style-agreement" else style
            return lambda drawn: read(judge, _checked(drawn))
        namer, count = models.get(Named, models.get(SubjectJudge.load)), leakage if name == "leakage" else subject
        return lambda drawn: count(namer, _checked(drawn))
    except ImportError as fault:
        raise ControlError(f"{name} needs {fault.name or fault}: pip install 'attnctrl[train,eval]'") from fault


class Named:
    """The subject judge, its reading of the last set kept for the next metric."""

    def __init__(self, judge: SubjectJudge) -> None:
        self.judge = judge
        self._last: tuple[DrawnSet, Seen] | None = None

    def followers(self, drawn: DrawnSet) -> list[str]:
        """The subject named in each follower."""
        if self._last is None or self._last[0] is not drawn:
            self._last = (drawn, self.judge(drawn.arrays[drawn.first :]))
        return self._last[1].subjects()


def agreement(judge: Judge, drawn: DrawnSet) -> float | None:
    """1 - mean distance of the followers' style parameters to the leader's, as read in one style: the asked one, or
    the one that the judge sees in a reference picture."""
    from ...embedded.judge import CIRCULAR, PARAMS

    leader = np.asarray(drawn.leader.resize(drawn.pictures[0].size).convert("RGB"))[None]
    read_in = drawn.style if drawn.style in judge.styles else judge.named(leader)[0]
    wanted, seen = (judge(x, style=read_in)["params"] for x in (leader, drawn.arrays[drawn.first :]))
    gaps = np.abs(seen - wanted)
    for i, name in enumerate(PARAMS):
        if name in CIRCULAR:
            gaps[:, i] = 2 * np.minimum(gaps[:, i], 1 - gaps[:, i])
    return float(1 - np.nanmean(gaps))


def style(judge: Judge, drawn: DrawnSet) -> float | None:
    """Share of followers whose style is named as asked; None where the set names none that the judge knows."""
    if drawn.style not in judge.styles:
        return None
    return _share(judge.named(drawn.arrays[drawn.first :]), [drawn.style] * len(drawn.followers))


def subject(namer: Named, drawn: DrawnSet) -> float | None:
    """Share of followers whose subject is named as asked; None where the judge does not know what was asked."""
    asked = [_known(text) for text in (drawn.subjects or ())[drawn.first :]]
    if not asked or None in asked:
        return None
    return _share(namer.followers(drawn), asked)


def leakage(namer: Named, drawn: DrawnSet) -> float | None:
    """Share of followers that are taken for the leader's subject; None where the judge does not know it."""
    led = _known(drawn.subjects[0] if drawn.subjects and drawn.first else drawn.caption)
    followers = [_known(text) for text in (drawn.subjects or ())[drawn.first :]]
    if led is None or led in followers:
        return None
    return _share(namer.followers(drawn), [led] * len(drawn.followers))


def _known(text: str) -> str | None:
    from ...embedded.subjects import SUBJECTS

    return next((word for word in reversed(text.lower().replace(",", " ").split()) if word in SUBJECTS), None)


def _share(seen: Sequence[str], asked: Sequence[str | None]) -> float:
    return float(np.mean([a == b for a, b in zip(seen, asked, strict=True)]))


def _checked(drawn: DrawnSet) -> DrawnSet:
    width, height = drawn.pictures[0].size
    if max(width, height) > LARGEST or width % _CELL or height % _CELL:
        raise ControlError(
            f"the embedded judges read sides up to {LARGEST} px, multiples of {_CELL}, not {width} x {height} px; "
            "measure these pictures by lite-style, clip-t, dino ..."
        )
    return drawn
