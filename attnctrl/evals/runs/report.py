"""A run's report: a CSV of all items, a summary, a table for a paper, and one page."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ...errors import ControlError
from ..ledger import write_file
from ..metrics.frechet import features, frechet
from ..metrics.kinds import FRECHET, higher_is_better
from .finished import Finished, read_run
from .summary import Figure, Summary, costs, summarise

ITEMS, SUMMARY, COSTS, TABLE, PAGE = "items.csv", "summary.json", "costs.json", "table.md", "report.html"
SHEET = "sheet.png"
"""Of a run of edits."""
KEPT = "frechet.npz"
"""Features of every item's pictures, so that a second report does not read them again."""
DRAWS = 200


def write_report(folder: Path, against: str | None = None, rows: int | None = None) -> list[Path]:
    """Write all files of a report into the run's folder; the first, second and fourth are byte-equal for equal runs.

    against: the method to compare with, None for the run's; `rows`: how many sets the page shows. Raises ControlError.
    """
    from .page import page

    run = read_run(folder)
    if not any(row.failed is None for row in run.rows.values()):
        raise ControlError(f"{folder} has no finished item yet; give the command that began it again")
    try:
        summary = summarise(run, against, frechet_of(run, against))
        spent = costs(run)
        texts = {
            ITEMS: items_csv(run),
            SUMMARY: json.dumps(summary.as_json(), indent=1, ensure_ascii=False) + "\n",
            COSTS: json.dumps({name: asdict(one) for name, one in spent.items()}, indent=1, ensure_ascii=False) + "\n",
            TABLE: table(summary),
            PAGE: page(run, summary, spent, rows),
        }
        bodies = {name: text.encode() for name, text in texts.items()}
        if run.config.kind == "edit":
            from .edit_sheet import edit_sheet

            bodies[SHEET] = edit_sheet(run, summary, rows)
        return [write_file(folder / name, body) for name, body in bodies.items()]
    except OSError as fault:
        raise ControlError(f"cannot write the report to {folder}: {fault.strerror}") from None


def items_csv(run: Finished) -> str:
    """A line an item: method, set, seed, its metrics, and what went wrong."""
    metrics = [name for name in run.config.metrics if name != FRECHET]
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    what = ["edit", "kind"] if run.config.kind == "edit" else ["set", "style"]
    lines.writerow(["method", *what, "seed", *metrics, "failed", "warned"])
    for one in run.sets.values():
        for arm in run.config.arms:
            row = run.rows.get((arm.name, one.id))
            if row is not None:
                values = ["" if (x := row.values.get(name)) is None else f"{x:.6g}" for name in metrics]
                odd = row.failed or "", row.warned or ""
                lines.writerow([arm.name, one.id, one.part, row.seed, *values, *odd])
    return text.getvalue()


def table(summary: Summary) -> str:
    """Markdown: means with intervals, then differences to the baseline; certain ones are bold."""
    arrows = {name: "↑" if higher_is_better(name) else "↓" for name in summary.metrics}
    head = [f"{name} {arrows[name]}" for name in summary.metrics]
    means = [[one.arm.name, *(_cell(one.means.get(name)) for name in summary.metrics)] for one in summary.arms]
    compared = [name for name in summary.metrics if name != FRECHET]
    gaps = [
        [one.arm.name, *(_cell(one.differences.get(name), True) for name in compared)]
        for one in summary.arms
        if one.arm.name != summary.baseline
    ]
    parts = [_rows(["method", *head], means)]
    if gaps:
        title = f"Difference to {summary.baseline}, paired by set (bold: the 95% interval leaves zero out):"
        parts += [title, _rows(["method", *(f"{name} {arrows[name]}" for name in compared)], gaps)]
    for name, by_part in summary.parts.items():
        means = [[one.arm.name, *(_cell(by_part[part].get(one.arm.name)) for part in by_part)] for one in summary.arms]
        parts += [f"{name} {arrows[name]} by kind of edit:", _rows(["method", *by_part], means)]
    return "\n\n".join(parts) + "\n"


def frechet_of(run: Finished, against: str | None = None) -> dict[str, Figure] | None:
    """The Frechet distance of each method's pictures from the baseline's, over the sets that both have.

    Bootstrapped over sets, both methods' alike, and corrected for its bias (B. Efron, "Bootstrap methods", 1979).
    None where the run does not measure it.
    """
    if FRECHET not in run.config.metrics:
        return None
    baseline = against or run.config.baseline
    kept = _features(run)
    found = {}
    for arm in run.config.arms:
        if arm.name == baseline:
            continue
        both = [one for one in run.sets if (baseline, one) in kept and (arm.name, one) in kept]
        if len(both) > 1:
            pairs = [(kept[arm.name, one], kept[baseline, one]) for one in both]
            found[arm.name] = _distance(pairs)
    return found


def _distance(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Figure:
    def distance(picks: Any) -> float:
        return frechet(*(np.concatenate([pairs[i][side] for i in picks]) for side in (0, 1)))

    rng = np.random.default_rng(0)
    draws = [distance(rng.integers(0, len(pairs), len(pairs))) for _ in range(DRAWS)]
    value, (low, high) = distance(range(len(pairs))), np.quantile(draws, [0.025, 0.975])
    # few pictures read as farther apart, and a draw as farther again by about as much: corrected by that
    mean, least, most = (max(0.0, float(2 * value - x)) for x in (np.mean(draws), high, low))
    return Figure(mean, least, most, len(pairs))


def _features(run: Finished) -> dict[tuple[str, str], np.ndarray]:
    """Features by arm and set, from the kept file as far as its pictures are the same."""
    from ..metrics.lite import Lite

    path = run.folder / KEPT
    kept: dict[str, np.ndarray] = {}
    if path.is_file():
        try:
            with np.load(path) as file:
                kept = dict(file)
        except (OSError, ValueError, EOFError, BadZipFile):
            kept = {}
    lite: Lite | None = None
    found, named = {}, {}
    for arm, one in ((arm, one) for arm in run.config.arms for one in run.sets):
        row = run.row(arm, one)
        if row is None:
            continue
        key = f"{arm.slug}/{one}/{_digest(row.pictures)}"
        if key not in kept:
            lite = lite or Lite()
            kept[key] = features(lite, run.pictures(arm, one)).astype(np.float32)
        found[arm.name, one], named[key] = kept[key].astype(np.float64), kept[key]
    if lite is not None:
        body = BytesIO()
        np.savez(body, **named)  # type: ignore[arg-type]
        write_file(path, body.getvalue())
    return found


def _digest(pictures: dict[str, str]) -> str:
    return "".join(value[:8] for value in pictures.values())[:32]


def _cell(figure: Figure | None, mark: bool = False) -> str:
    if figure is None:
        return "–"
    if figure.sets < 2:
        return f"{_short(figure.mean)} (one set)"
    text = f"{_short(figure.mean)} [{_short(figure.low)}, {_short(figure.high)}]"
    return f"**{text}**" if mark and figure.certain else text


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def _rows(head: list[str], body: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *body)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
