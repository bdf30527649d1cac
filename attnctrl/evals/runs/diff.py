"""Two runs compared set by set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import ControlError
from ..metrics.kinds import FRECHET
from .finished import Finished, read_run
from .summary import Figure, figure_of


@dataclass(frozen=True)
class Change:
    """One metric of one method: its means in both runs over the sets that both have, and the paired difference."""

    method: str
    metric: str
    before: float
    after: float
    difference: Figure


@dataclass(frozen=True)
class Comparison:
    """All changes, and what of the two runs' settings differs; `same` counts items whose pictures are byte-equal."""

    changes: Sequence[Change]
    settings: Sequence[str]
    items: int
    same: int


def compared(before: Path, after: Path) -> Comparison:
    """The second run minus the first; ControlError where they share no method, set or metric."""
    old, new = read_run(before), read_run(after)
    methods = [arm.name for arm in old.config.arms if arm.name in {arm.name for arm in new.config.arms}]
    metrics = [name for name in old.config.metrics if name in new.config.metrics and name != FRECHET]
    sets = [one for one in old.sets if new.sets.get(one) == old.sets[one]]
    for name, found in (("method", methods), ("metric", metrics), ("set", sets)):
        if not found:
            raise ControlError(f"{before} and {after} have no {name} in common; nothing can be compared")
    changes = []
    for method in methods:
        for metric in metrics:
            a, b = (_values(run, method, metric, sets) for run in (old, new))
            both = ~np.isnan(a) & ~np.isnan(b)
            if difference := figure_of(b - a):
                changes.append(Change(method, metric, float(a[both].mean()), float(b[both].mean()), difference))
    rows = [(old.rows.get((m, s)), new.rows.get((m, s))) for m in methods for s in sets]
    done = [(a, b) for a, b in rows if a is not None and b is not None and a.failed is None and b.failed is None]
    same = sum(list(a.pictures.values()) == list(b.pictures.values()) for a, b in done)
    return Comparison(changes, _settings(old, new), len(done), same)


def table(found: Comparison) -> str:
    """Markdown; certain differences are bold."""
    lines = [f"{found.same} of {found.items} items have byte-equal pictures."]
    if found.settings:
        lines.append(f"The runs differ in {', '.join(found.settings)}.")
    lines += [
        "",
        "| method | metric | before | after | difference [95% interval] | sets |",
        "|---|---|---|---|---|---|",
    ]
    for one in found.changes:
        gap = f"**{one.difference}**" if one.difference.certain else str(one.difference)
        cells = one.method, one.metric, f"{one.before:.3f}", f"{one.after:.3f}", gap, str(one.difference.sets)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(run: Finished, method: str, metric: str, sets: Sequence[str]) -> np.ndarray:
    values = dict(zip(run.sets, run.values(run.config.arm(method), metric), strict=True))
    return np.array([values[one] for one in sets])


def _settings(old: Finished, new: Finished) -> list[str]:
    a, b = (run.config.model_dump(mode="json") for run in (old, new))
    plain = [name for name in a if name != "arms" and a[name] != b[name]]
    changed = [arm.name for arm in old.config.arms if any(arm.name == o.name and arm != o for o in new.config.arms)]
    return plain + [f"the settings of {name}" for name in changed]
