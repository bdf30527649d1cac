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
from attnctrl.embedded.scenes import STYLE_NAMES, WIDER
from attnctrl.embedded.subjects import PAIR_SCALES, SubjectJudge, both_found, in_order


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
        """Read pictures uint8 [H, W, 3] of one size, a case each; all of one kind (one subject, colored, or two)."""
        images = np.stack(pictures)
        seen = self.subjects(images, PAIR_SCALES if cases[0].relation else (1.0,))
        style = np.array(self.styles.named(images, WIDER.styles)) == [case.style for case in cases]
        if cases[0].relation:
            found = seen.found()
            pairs = [(case.subjects[0], case.subjects[1], str(case.relation)) for case in cases]
            both = np.array([both_found(things, *pair[:2]) for things, pair in zip(found, pairs, strict=True)])
            order = np.array([in_order(things, *pair) for things, pair in zip(found, pairs, strict=True)])
            right = {"both subjects": both, "both in order": order, "style": style}
        else:
            subject = np.array(seen.subjects()) == [case.subjects[0] for case in cases]
            right = {"subject": subject, "style": style, "subject and style": subject & style}
            if cases[0].color:
                right["color"] = np.array(seen.color_of([case.subjects[0] for case in cases])) == [
                    case.color for case in cases
                ]
        return Reading(list(cases), right, self._params(cases, images))

    def _params(self, cases: Sequence[Case], images: Array) -> np.ndarray:
        params = np.full((len(cases), len(PARAMS)), np.nan)
        for name in STYLE_NAMES:
            rows = [i for i, case in enumerate(cases) if case.style == name]
            if rows:
                params[rows] = self.styles(images[rows], style=name)["params"]
        return params


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
