"""What the studies share: bootstrap intervals, paired differences to plain, tables, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from attnctrl.embedded import intervals

Scores = dict[str, dict[str, np.ndarray]]
"""[method][metric], one value a set or trial, the same sets for all methods."""


def table(result: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table: mean [interval]."""
    metrics = list(next(iter(result.values())))
    lines = ["| method | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, values in result.items():
        cells = [f"{v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]" for v in values.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(scores: Scores, told: dict[str, Any], out: Path) -> None:
    """Write OUT.json with the means and the differences to `plain`, and print both tables."""
    means = {name: {m: _rounded(v) for m, v in values.items()} for name, values in scores.items()}
    gains = {
        name: {m: _rounded(v - scores["plain"][m]) for m, v in values.items()}
        for name, values in scores.items()
        if name != "plain"
    }
    body = {**told, "means": means, "difference to plain": gains}
    out.with_suffix(".json").write_text(json.dumps(body, indent=2) + "\n")
    print(table(means), table(gains), sep="\n\n")


def _rounded(values: np.ndarray) -> list[float]:
    return [round(x, 3) for x in intervals.mean(values)]
