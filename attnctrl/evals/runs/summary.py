"""The figures of a run: means with intervals over sets, paired differences, the trade-off and its front, costs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...embedded import intervals
from ...errors import ControlError
from ..metrics.kinds import FRECHET, higher_is_better, says
from .arms import Arm
from .finished import Finished

STYLE_AXES = ("csd", "style-agreement", "clip-i", "dino", "lite-style", "edit-success")
TEXT_AXES = ("clip-t", "subject-as-asked", "lite-diversity", "background-psnr")
"""Which metrics the trade-off is drawn of: the first of each that the run has."""
BY_PART = ("edit-success", "untaken", "background-psnr")
"""Metrics of edits that are also told by their kind."""


@dataclass(frozen=True)
class Figure:
    """A mean over `sets` sets with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    sets: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves zero out; said of differences, and never of a single set."""
        return self.sets > 1 and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if self.sets < 2:
            return f"{self.mean:.3f} (one set)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class ArmSummary:
    """One method's figures by metric, and its paired differences to the baseline over the sets that both have."""

    arm: Arm
    means: Mapping[str, Figure]
    differences: Mapping[str, Figure]
    failed: int
    missing: int
    warned: Sequence[str]
    pareto: bool = False


@dataclass(frozen=True)
class Cost:
    """Seconds to draw a set, what saving and measuring it took of that, and the peak of memory in MiB."""

    seconds: Figure
    measuring_share: float
    peak_mib: float


@dataclass(frozen=True)
class Summary:
    """A run's figures; `axes` are the metrics of the trade-off (x, y), None where the run has no two of them.

    `parts`: of BY_PART, the means by kind of edit and method.
    """

    baseline: str
    metrics: Sequence[str]
    arms: Sequence[ArmSummary]
    axes: tuple[str, str] | None
    parts: Mapping[str, Mapping[str, Mapping[str, Figure]]] = field(default_factory=dict)

    def of(self, name: str) -> ArmSummary:
        """A method's."""
        return next(one for one in self.arms if one.arm.name == name)

    def as_json(self) -> dict[str, Any]:
        """Plain values; the same run gives the same bytes."""
        return {
            "summary": 1,
            "baseline": self.baseline,
            "metrics": {
                name: {"says": says(name), "higher_is_better": higher_is_better(name)} for name in self.metrics
            },
            "axes": self.axes,
            "parts": {
                name: {part: {arm: _rounded(one) for arm, one in by_arm.items()} for part, by_arm in by_part.items()}
                for name, by_part in self.parts.items()
            },
            "methods": {
                one.arm.name: {
                    "series": one.arm.series,
                    "swept": one.arm.swept,
                    "pareto": one.pareto,
                    "failed": one.failed,
                    "missing": one.missing,
                    "warned": list(one.warned),
                    "means": {name: _rounded(figure) for name, figure in one.means.items()},
                    "differences": {name: _rounded(figure) for name, figure in one.differences.items()},
                }
                for one in self.arms
            },
        }


def summarise(run: Finished, against: str | None = None, frechet: Mapping[str, Figure] | None = None) -> Summary:
    """The figures of all methods of a run; ControlError for an unknown `against` (None: the run's baseline)."""
    baseline = against or run.config.baseline
    names = [arm.name for arm in run.config.arms]
    if baseline not in names:
        raise ControlError(f"the run has no method {baseline!r} to compare with; it has {', '.join(names)}")
    measured = [name for name in run.config.metrics if name != FRECHET]
    base = {name: run.values(run.config.arm(baseline), name) for name in measured}
    found = []
    for arm in run.config.arms:
        values = {name: run.values(arm, name) for name in measured}
        means = {name: figure for name in measured if (figure := figure_of(values[name]))}
        gaps = {name: figure for name in measured if (figure := figure_of(values[name] - base[name]))}
        if frechet and arm.name in frechet:
            means[FRECHET] = frechet[arm.name]
        rows = [run.rows.get((arm.name, one)) for one in run.sets]
        warned = dict.fromkeys(row.warned for row in rows if row is not None and row.warned)
        failed = sum(row is not None and row.failed is not None for row in rows)
        found.append(
            ArmSummary(
                arm, means, {} if arm.name == baseline else gaps, failed, rows.count(None), [str(w) for w in warned]
            )
        )
    axes = axes_of(measured)
    front = pareto(found, axes) if axes else set()
    found = [replace(one, pareto=one.arm.name in front) for one in found]
    kept = [name for name in run.config.metrics if any(name in one.means for one in found)]
    return Summary(baseline, kept, found, axes, parts_of(run, [name for name in BY_PART if name in kept]))


def parts_of(run: Finished, metrics: Sequence[str]) -> dict[str, dict[str, dict[str, Figure]]]:
    """Means of some metrics by the items' parts and methods."""
    parts = list(dict.fromkeys(one.part for one in run.sets.values()))
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for name in metrics:
        values = {arm.name: run.values(arm, name) for arm in run.config.arms}
        for part in parts:
            own = np.array([one.part == part for one in run.sets.values()])
            means = {arm: figure for arm, every in values.items() if (figure := figure_of(every[own]))}
            if means:
                found.setdefault(name, {})[part] = means
    return found


def costs(run: Finished) -> dict[str, Cost]:
    """What each method took; not the same from run to run."""
    found = {}
    for arm in run.config.arms:
        rows = [row for one in run.sets if (row := run.row(arm, one))]
        seconds = figure_of(np.array([row.seconds for row in rows]))
        if seconds:
            share = sum(row.measuring for row in rows) / max(1e-9, sum(row.seconds for row in rows))
            found[arm.name] = Cost(seconds, share, max(row.peak_mib for row in rows))
    return found


def figure_of(values: np.ndarray) -> Figure | None:
    """The mean of what is not NaN; None for nothing."""
    kept = values[~np.isnan(values)]
    return Figure(*intervals.mean(kept), len(kept)) if len(kept) else None


def axes_of(metrics: Sequence[str]) -> tuple[str, str] | None:
    """The metrics of the trade-off: text or content across, style up."""
    plain = {name.partition(":")[0]: name for name in reversed(metrics)}
    across = next((plain[name] for name in TEXT_AXES if name in plain), None)
    up = next((plain[name] for name in STYLE_AXES if name in plain), None)
    return (across, up) if across and up else None


def pareto(found: Sequence[ArmSummary], axes: tuple[str, str]) -> set[str]:
    """Methods that no other beats on one axis without losing on the other; copies of the leader do not take part."""
    points = {
        one.arm.name: tuple(one.means[axis].mean * (1 if higher_is_better(axis) else -1) for axis in axes)
        for one in found
        if not one.arm.copies and all(axis in one.means for axis in axes)
    }
    return {
        name
        for name, point in points.items()
        if not any(
            other != point and all(b >= a for a, b in zip(point, other, strict=True)) for other in points.values()
        )
    }


def worst_first(run: Finished, summary: Summary) -> list[str]:
    """Ids of the sets, the one with the least of the upper axis first: its mean over methods that control something."""
    name = summary.axes[1] if summary.axes else (*summary.metrics, *run.config.metrics)[0]
    chosen = [arm for arm in run.config.arms if arm.control] or list(run.config.arms)
    values = np.array([run.values(arm, name) for arm in chosen]) * (1 if higher_is_better(name) else -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a set without any value
        means = np.nanmean(values, axis=0)
    order = np.argsort(np.where(np.isnan(means), np.inf, means), kind="stable")
    ids = list(run.sets)
    return [ids[i] for i in order]


def _rounded(figure: Figure) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(figure).items()}
