"""The judges' reading of an evaluation's pictures: what is right of what was asked, and how far styles differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnctrl.embedded import intervals
from attnctrl.embedded.canvas import Array
from attnctrl.embedded.cases import Case
from attnctrl.embedded.intervals import Interval
from attnctrl.embedded.judge import CIRCULAR, PARAMS, Judge
from attnctrl.embedded.scenes import PAIRED, STYLE_NAMES
from attnctrl.embedded.subjects import FINE, PAIR_SCALES, Seen, SubjectJudge, all_found, in_order


@dataclass(frozen=True)
class Reading:
    """One value a picture: `right` holds a row of booleans for each thing asked, `params` [n, 5] the style parameters.

    Style parameters are read in the asked style; NaN where it does not declare them.
    """

    cases: list[Case]
    right: dict[str, np.ndarray]
    params: np.ndarray

    def shares(self) -> dict[str, Interval]:
        """The share that is right, for each thing asked."""
        return {name: intervals.share(rows) for name, rows in self.right.items()}

    def by(self, part: str) -> dict[str, dict[str, float]]:
        """Shares by `style` or by first `subject`."""
        names = [case.style if part == "style" else case.subjects[0] for case in self.cases]
        groups = {name: [i for i, other in enumerate(names) if other == name] for name in sorted(set(names))}
        return {
            name: {what: round(float(rows[chosen].mean()), 3) for what, rows in self.right.items()}
            for name, chosen in groups.items()
        }


class Reader:
    """Both judges."""

    def __init__(self) -> None:
        self.subjects, self.styles = SubjectJudge.load(), Judge.load()

    def __call__(self, cases: Sequence[Case], pictures: Sequence[Array]) -> Reading:
        """Read pictures uint8 [H, W, 3], a case each; all of one kind (one subject, colored, two, three)."""
        parts = []
        for size in sorted({case.size for case in cases}):
            rows = [i for i, case in enumerate(cases) if case.size == size]
            parts.append((rows, self._one_size([cases[i] for i in rows], np.stack([pictures[i] for i in rows]))))
        order = np.argsort([i for rows, _ in parts for i in rows])
        right = {name: np.concatenate([part.right[name] for _, part in parts])[order] for name in parts[0][1].right}
        return Reading(list(cases), right, np.concatenate([part.params for _, part in parts])[order])

    def _one_size(self, cases: list[Case], images: Array) -> Reading:
        seen = self.subjects(images, PAIR_SCALES, FINE) if cases[0].relation else self.subjects(images)
        style = np.array(self.styles.named(images, PAIRED.styles)) == [case.style for case in cases]
        right = _of_several(seen, cases) if cases[0].relation else _of_one(seen, cases)
        right["style"] = style
        if not cases[0].relation:
            right["subject and style"] = right["subject"] & style
        return Reading(cases, right, self._params(cases, images))

    def _params(self, cases: Sequence[Case], images: Array) -> np.ndarray:
        params = np.full((len(cases), len(PARAMS)), np.nan)
        for name in STYLE_NAMES:
            rows = [i for i, case in enumerate(cases) if case.style == name]
            if rows:
                params[rows] = self.styles(images[rows], style=name)["params"]
        return params


def _of_one(seen: Seen, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    names = [case.subjects[0] for case in cases]
    right = {"subject": np.array(seen.subjects()) == names}
    if cases[0].colors:
        right["color"] = np.array(seen.color_of(names)) == [case.colors[0] for case in cases]
    return right


def _of_several(seen: Seen, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    count = len(cases[0].subjects)
    every = seen.found(count)
    pairs = list(zip(every, cases, strict=True))
    names = "both" if count == 2 else "all"
    right = {
        f"{names} subjects": np.array([all_found(things, case.subjects) for things, case in pairs]),
        f"{names} in order": np.array([in_order(things, case.subjects, str(case.relation)) for things, case in pairs]),
        "count": np.array(seen.counts()) == count,
    }
    if cases[0].colors:
        wanted = [dict(zip(case.subjects, case.colors, strict=True)) for case in cases]
        told = [{thing.subject: thing.color for thing in things} for things in every]
        right["each in its color"] = np.array([one == other for one, other in zip(told, wanted, strict=True)])
    return right


def gaps(cases: Sequence[Case], params: np.ndarray) -> dict[str, np.ndarray]:
    """How far two pictures of one style differ, over disjoint pairs of them, for each parameter; at most 1.

    Circular parameters count twice the shorter way round: two uniform draws differ by 1/3 on a line, 1/2 on a circle.
    """
    collected: dict[str, list[float]] = {name: [] for name in PARAMS}
    for style in sorted({case.style for case in cases}):
        rows = [i for i, case in enumerate(cases) if case.style == style]
        for first, second in zip(rows[::2], rows[1::2], strict=False):
            gap = np.abs(params[first] - params[second])
            for i, name in enumerate(PARAMS):
                if not np.isnan(gap[i]):
                    collected[name].append(float(2 * min(gap[i], 1 - gap[i]) if name in CIRCULAR else gap[i]))
    return {name: np.array(values) for name, values in collected.items()}
