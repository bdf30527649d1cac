"""The report's plots as numbers in pixels: the trade-off with labels that keep clear of each other, and the sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, hypot, log10
from typing import Any

import numpy as np

from .arms import Arm
from .summary import ArmSummary, Figure, Summary

COLOURS = 6
LETTER, BOLD, LINE = 6.9, 1.12, 15.0
"""Pixels of a label's letter, how much wider a bold one is, and pixels of a line; rather too many than too few."""
_REACH = (10, 16, 24, 34, 46, 60, 78, 98)
_NEAR = 17.0


@dataclass(frozen=True)
class Axis:
    """One direction: which value lies at which pixel, and round ticks."""

    low: float
    high: float
    begin: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and text of every tick."""
        digits = max(0, -floor(log10(self.step) + 1e-9))
        first, last = ceil(self.low / self.step - 1e-9), floor(self.high / self.step + 1e-9)
        values = [number * self.step for number in range(first, last + 1)]
        return [(self.at(value), f"{value:.{digits}f}".replace("-", "−")) for value in values]


def axis(values: Sequence[float], begin: float, end: float, about: int = 6) -> Axis:
    """An axis that holds the values with some room, and has some such number of ticks at round numbers."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - room, high + room
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return Axis(low, high, begin, end, step)


@dataclass(frozen=True)
class Point:
    """A method in pixels: its mean, both intervals, and the label; `leader` is a line to a label that lies apart."""

    number: int
    one: ArmSummary
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]
    label: str
    text: tuple[float, float]
    leader: tuple[float, float] | None
    shown: bool


@dataclass(frozen=True)
class Line:
    """Points of one series, joined in order of a setting; `label` at its right end."""

    series: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    numbers: Sequence[int] = ()
    label: tuple[float, float] = (0, 0)
    joined: bool = True


@dataclass(frozen=True)
class Plot:
    """All that a drawing needs. `level`: where the baseline lies in a plot of a sweep."""

    width: float
    height: float
    x: Axis | None
    y: Axis
    frame: tuple[float, float, float, float]
    points: Sequence[Point] = ()
    lines: Sequence[Line] = ()
    front: Sequence[tuple[float, float]] = ()
    names: Sequence[tuple[float, str]] = ()
    level: float | None = None
    metric: str = ""


def colours(arms: Sequence[Arm]) -> dict[str, int]:
    """A colour's number for every series of several methods."""
    every = [arm.series or arm.name for arm in arms]
    several = [name for name in dict.fromkeys(every) if every.count(name) > 1]
    return {name: number % COLOURS for number, name in enumerate(several)}


def sweeps(summary: Summary) -> dict[str, dict[str, list[tuple[Any, ArmSummary]]]]:
    """By setting and series: values with methods that differ in this setting alone, of at least two values.

    The method without any setting joins a sweep of `strength` by the strength that it has.
    """
    found: dict[str, dict[str, list[tuple[Any, ArmSummary]]]] = {}
    for one in summary.arms:
        if len(one.arm.swept) == 1:
            ((key, value),) = one.arm.swept.items()
            found.setdefault(key, {}).setdefault(one.arm.series, []).append((value, one))
    for series, every in found.get("strength", {}).items():
        base = next((one for one in summary.arms if one.arm.name == series and not one.arm.swept), None)
        if base is not None:
            own = [control.strength for control in base.arm.control if hasattr(control, "strength")]
            every.append((own[0] if own else 1.0, base))
    for by_series in found.values():
        for every in by_series.values():
            if all(_number(value) for value, _ in every):
                every.sort(key=lambda pair: pair[0])
    return {key: {name: own for name, own in one.items() if len(own) > 1} for key, one in found.items()}


def tradeoff(summary: Summary, width: int = 1160, height: int = 600) -> Plot | None:
    """Every method that has both metrics; None where there is none."""
    drawn = [
        (number, one)
        for number, one in enumerate(summary.arms)
        if summary.axes and all(axis in one.means for axis in summary.axes)
    ]
    if not drawn or not summary.axes:
        return None
    across, up = summary.axes
    frame = (58.0, 14.0, width - 12.0, height - 48.0)
    figures = [[one.means[name] for _, one in drawn] for name in summary.axes]
    x, y = (
        axis([v for figure in own for v in (figure.low, figure.high)], begin, end, int(abs(end - begin) / 75))
        for own, begin, end in zip(figures, (frame[0], frame[3]), (frame[2], frame[1]), strict=True)
    )
    at = {one.arm.name: (x.at(one.means[across].mean), y.at(one.means[up].mean)) for _, one in drawn}
    lines, labels = [], {name: name for name in at}
    for key, by_series in sweeps(summary).items():
        for series, every in by_series.items():
            kept = [(value, one) for value, one in every if one.arm.name in at and _number(value)]
            if len(kept) > 1:
                lines.append(Line(series, [at[one.arm.name] for _, one in kept]))
            if key == "strength" and series in at:
                labels |= {one.arm.name: f"{value:g}" for value, one in kept if one.arm.name != series}
    bars = [(_span(x, one.means[across]), _span(y, one.means[up])) for _, one in drawn]
    texts = [labels[one.arm.name] for _, one in drawn]
    wide = [LETTER * len(text) * (BOLD if one.pareto else 1) for text, (_, one) in zip(texts, drawn, strict=True)]
    spots, shown = _labels([at[one.arm.name] for _, one in drawn], wide, bars, lines, frame)
    points = []
    for (number, one), text, own, (over, high), spot, fits in zip(drawn, texts, wide, bars, spots, shown, strict=True):
        place = at[one.arm.name]
        edge = _edge(place, spot, own / 2)
        leader = edge if hypot(edge[0] - place[0], edge[1] - place[1]) > _NEAR else None
        points.append(Point(number, one, *place, over, high, text, spot, leader, fits))
    best = sorted(at[one.arm.name] for _, one in drawn if one.pareto)
    return Plot(width, height, x, y, frame, points, lines, _steps(best, frame))


def sweep_plots(summary: Summary, width: int = 460, height: int = 236) -> dict[str, list[Plot]]:
    """For every swept setting a plot a metric: those of the trade-off, else the first one."""
    metrics = tuple(reversed(summary.axes)) if summary.axes else tuple(summary.metrics[:1])
    plots = {
        key: [plot for name in metrics if (plot := _sweep(summary, own, name, width, height))]
        for key, own in sweeps(summary).items()
    }
    return {key: own for key, own in plots.items() if own}


def _sweep(
    summary: Summary, own: Mapping[str, list[tuple[Any, ArmSummary]]], metric: str, width: int, height: int
) -> Plot | None:
    all_of = {name: [(v, one) for v, one in every if metric in one.means] for name, every in own.items()}
    had = {name: every for name, every in all_of.items() if every}
    figures = [one.means[metric] for every in had.values() for _, one in every]
    if not figures:
        return None
    base: Figure | None = summary.of(summary.baseline).means.get(metric)
    frame = (44.0, 12.0, width - 14 - 1.1 * LETTER * max(map(len, [*had, summary.baseline])), height - 42.0)
    values = [value for every in had.values() for value, _ in every]
    numbers = all(_number(value) for value in values)
    known = list(dict.fromkeys(map(str, values)))
    across = axis([float(v) for v in values] if numbers else [-0.4, len(known) - 0.6], frame[0], frame[2], 7)
    spread = [v for figure in figures for v in (figure.low, figure.high)] + ([base.mean] if base else [])
    y = axis(spread, frame[3], frame[1], 4)
    lines = []
    level = y.at(base.mean) if base else None
    for name, every in had.items():
        at = [across.at(float(v) if numbers else known.index(str(v))) for v, _ in every]
        ends = [_span(y, one.means[metric]) for _, one in every]
        places = [(x, y.at(one.means[metric].mean)) for x, (_, one) in zip(at, every, strict=True)]
        numbered = [summary.arms.index(one) for _, one in every]
        lines.append(Line(name, places, ends, numbered, joined=numbers))
    heights = _apart([line.points[-1][1] for line in lines], [] if level is None else [level], frame)
    lines = [replace(one, label=(frame[2] + 8, at)) for one, at in zip(lines, heights, strict=True)]
    names = [] if numbers else [(across.at(i), text) for i, text in enumerate(known)]
    return Plot(width, height, across if numbers else None, y, frame, (), lines, (), names, level, metric)


def _span(own: Axis, figure: Figure) -> tuple[float, float]:
    return own.at(figure.low), own.at(figure.high)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(best: Sequence[tuple[float, float]], frame: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """The border of what the front beats, as a staircase; more is better in both directions."""
    if not best:
        return []
    path = [(frame[0], best[0][1])]
    for place, after in zip(best, [*best[1:], None], strict=True):
        path += [place, (place[0], after[1] if after else frame[3])]
    return path


def _apart(wanted: Sequence[float], taken: Sequence[float], frame: tuple[float, float, float, float]) -> list[float]:
    """Heights near the wanted ones, a line apart."""
    found: dict[int, float] = {}
    for number in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        busy = [*taken, *found.values()]
        tries = sorted(np.arange(frame[1] + 6, frame[3], 1.0), key=lambda at: abs(at - wanted[number]))
        free = [at for at in tries if all(abs(at - other) >= LINE for other in busy)]
        found[number] = float((free or tries)[0])
    return [found[number] for number in range(len(wanted))]


def _edge(place: tuple[float, float], spot: tuple[float, float], half: float) -> tuple[float, float]:
    """Where a label's box is nearest to its point."""
    x = min(max(place[0], spot[0] - half), spot[0] + half)
    return round(x, 1), round(min(max(place[1], spot[1] - LINE / 2), spot[1] + LINE / 2), 1)


def _labels(
    places: Sequence[tuple[float, float]],
    wide: Sequence[float],
    bars: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    lines: Sequence[Line],
    frame: tuple[float, float, float, float],
) -> tuple[list[tuple[float, float]], list[bool]]:
    """Centres of labels, each moved to where it costs least until none moves; and whether it hides nothing."""
    at, halves = np.array(places), np.array([[one / 2 + 2, LINE / 2] for one in wide])
    dots = np.concatenate([at - 7, at + 7], axis=1)
    rest = [[min(x), py, max(x), py] for (x, _), (_, py) in zip(bars, places, strict=True)]
    rest += [[px, min(y), px, max(y)] for (_, y), (px, _) in zip(bars, places, strict=True)]
    for line in lines:
        for (x, y), (x2, y2) in zip(line.points, line.points[1:], strict=False):
            steps = np.linspace(0, 1, 2 + int(hypot(x2 - x, y2 - y) / 8))[:, None]
            rest += np.tile((1 - steps) * (x, y) + steps * (x2, y2), 2).tolist()
    ways = np.stack([wave(np.arange(16) * np.pi / 8) for wave in (np.cos, np.sin)], axis=1)
    made: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, (place, half) in enumerate(zip(at, halves, strict=True)):
        far = np.repeat(_REACH, len(ways))[:, None]
        centres = place + np.tile(ways, (len(_REACH), 1)) * (far + half)
        boxes = np.concatenate([centres - half, centres + half], axis=1)
        edges = np.clip(place, boxes[:, :2], boxes[:, 2:])
        way = place + np.linspace(0.2, 1, 6)[:, None, None] * (edges - place)
        leader = np.concatenate([way, way], axis=2).transpose(1, 0, 2)
        others = np.delete(dots, number, axis=0)
        outside = (boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1)
        cost = 1000.0 * outside + 60 * _hits(boxes, dots).sum(axis=1) + 1.5 * _hits(boxes, np.array(rest)).sum(axis=1)
        cost += 6 * _hits(leader.reshape(-1, 4), others).reshape(len(boxes), -1).sum(axis=1)
        cost += 0.35 * far[:, 0] - 1.5 * np.tile(ways[:, 0], len(_REACH))
        made.append((boxes, cost, leader))
    choices, fixed, leaders = zip(*made, strict=True)
    chosen, total = [int(np.argmin(cost)) for cost in fixed], [0.0] * len(wide)
    for _ in range(8):
        before = list(chosen)
        for number, boxes in enumerate(choices):
            taken = [i for i in range(len(wide)) if i != number]
            labels = np.array([choices[i][chosen[i]] for i in taken]).reshape(-1, 4)
            ways_taken = np.array([leaders[i][chosen[i]] for i in taken]).reshape(-1, 4)
            cost = fixed[number] + 120 * _hits(boxes, labels).sum(axis=1) + 6 * _hits(boxes, ways_taken).sum(axis=1)
            cost += 6 * _hits(leaders[number].reshape(-1, 4), labels).reshape(len(boxes), -1).sum(axis=1)
            chosen[number] = int(np.argmin(cost))
            total[number] = float(cost[chosen[number]])
        if chosen == before:
            break
    boxes = np.array([own[pick] for own, pick in zip(choices, chosen, strict=True)])
    return [tuple(spot) for spot in np.round((boxes[:, :2] + boxes[:, 2:]) / 2, 1).tolist()], [
        cost < 60 for cost in total
    ]


def _hits(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which boxes (left, top, right, bottom) touch which others."""
    first, second = boxes[:, None], others[None]
    return np.all((first[..., :2] <= second[..., 2:]) & (second[..., :2] <= first[..., 2:]), axis=2)
