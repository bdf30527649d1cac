"""What the embedded models must show, as a table of figures beside their aims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctrl.embedded.intervals import Interval

SHARES: tuple[tuple[str, str, float], ...] = (
    ("trained", "subject and style", 0.9),
    ("held out", "subject and style", 0.8),
    ("color", "color", 0.9),
    ("relation", "both subjects", 0.8),
    ("relation", "both in order", 0.75),
    ("relation, colors", "each in its color", 0.7),
)
"""Group of cases, what is read of it, the share aimed at."""
SHIFT, SPREAD, SECONDS = 0.05, 0.8, 3.0
"""Most that a grid's shift changes; least spread of a style parameter, in shares of the world's; seconds a picture."""


@dataclass(frozen=True)
class Aim:
    """One aim: its figure with a 95% interval where it has one, the same of true renders, and whether it is met."""

    name: str
    figure: Interval
    true: Interval | None
    aim: str
    met: bool


def aims(result: dict[str, Any]) -> list[Aim]:
    """The aims of an evaluation's JSON."""
    found = []
    for group, what, least in SHARES:
        if group in result["right"]:
            drawn, true = (tuple(result["right"][group][kind][what]) for kind in ("drawn", "true"))
            found.append(Aim(f"{group}: {what}", drawn, true, f">= {least}", drawn[0] >= least))
    moved = tuple(result["shifted"]["subject and style"]["difference"])
    found.append(Aim("a grid's shift: change", moved, None, f"within {SHIFT}", abs(moved[0]) < SHIFT))
    for name, value in result["differences"].items():
        share = value["drawn"][0] / value["true"][0]
        spread = tuple(x / value["true"][0] for x in value["drawn"])
        found.append(Aim(f"spread of {name}, of the world's", spread, None, f">= {SPREAD}", share >= SPREAD))
    seconds = result["seconds a picture"]
    found.append(Aim("seconds a picture", (seconds,) * 3, None, f"<= {SECONDS:g}", seconds <= SECONDS))
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """The aims of one or more models' evaluations as a Markdown table: drawn [interval] / true renders, bold if met."""
    columns = [aims(result) for result in results]
    lines = [
        f"| drawn [interval] / true renders | {' | '.join(result['model'] for result in results)} | aim |",
        "|---|" + "---|" * (len(results) + 1),
    ]
    for row in zip(*columns, strict=True):
        lines.append(f"| {row[0].name} | {' | '.join(_cell(aim) for aim in row)} | {row[0].aim} |")
    return "\n".join(lines)


def _cell(aim: Aim) -> str:
    value, low, high = aim.figure
    figure = f"**{value:.2f}**" if aim.met else f"{value:.2f}"
    spread = f" [{low:.2f}, {high:.2f}]" if low < high else ""
    return figure + spread + (f" / {aim.true[0]:.2f}" if aim.true else "")


def renew(page: Path, folders: Sequence[Path], mark: str = "aims") -> None:
    """Write the table of the evaluations in `folders` between a page's marks `<!-- aims -->` and `<!-- /aims -->`."""
    text = page.read_text()
    head, rest = text.split(f"<!-- {mark} -->")
    tail = rest.split(f"<!-- /{mark} -->")[1]
    results = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    page.write_text(f"{head}<!-- {mark} -->\n{table(results)}\n<!-- /{mark} -->{tail}")
