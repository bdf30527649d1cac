"""A run of edits as one picture: source, region, and what every method made of it, a row an edit."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from ...pipelines.edits import shown_region
from ...pipelines.sheets import SheetRow, contact_sheet
from .arms import Arm
from .finished import Finished
from .summary import Summary, worst_first

ROWS = 21
"""Edits on a sheet unless asked for more: three of each of the shipped kinds."""


def edit_sheet(run: Finished, summary: Summary, rows: int | None = None) -> bytes:
    """PNG; `rows`: how many edits, of every kind the worst first; None: 21."""
    arms = [one.arm for one in summary.arms]
    made = [row for one in _chosen(run, summary, rows or ROWS) if (row := _row(run, arms, one))]
    body = BytesIO()
    contact_sheet(made, f"{run.config.model}: source, region, methods").save(body, "PNG")
    return body.getvalue()


def beside(run: Finished, arms: Sequence[Arm], one: str) -> list[tuple[str, Image.Image]]:
    """An edit's source, and on it the region of the first method that has one and where it should change."""
    every = [found for arm in arms if (found := run.beside(arm, one))]
    source = next((found["source"] for found in every), None)
    if source is None:
        return []
    parts = [("source", source)]
    for name in ("region", "mask"):
        mask = next((found[name] for found in every if name in found), None)
        if mask is not None:
            parts.append((name, shown_region(source, mask)))
    return parts


def _chosen(run: Finished, summary: Summary, count: int) -> list[str]:
    """So many edits, of every kind in turn, in the run's order."""
    by_part: dict[str, list[str]] = {}
    for one in worst_first(run, summary):
        by_part.setdefault(run.sets[one].part, []).append(one)
    turns = [ids[turn] for turn in range(len(run.sets)) for ids in by_part.values() if turn < len(ids)]
    kept = set(turns[:count])
    return [one for one in run.sets if one in kept]


def _row(run: Finished, arms: Sequence[Arm], one: str) -> SheetRow | None:
    case, shown = run.sets[one], beside(run, arms, one)
    if not shown:
        return None
    says = {"source": case.source, "region": "what may change", "mask": "what should change"}
    pictures, captions = [picture for _, picture in shown], [says[name] for name, _ in shown]
    for arm in arms:
        row = run.row(arm, one)
        if row is not None:
            pictures += run.pictures(arm, one)
            captions.append(f"{arm.name}{_told(row.values)}")
    return SheetRow(f"{one}: {case.target}", pictures, captions, frozenset({0}))


def _told(values: dict[str, float | None]) -> str:
    said = {1.0: "as asked", 0.0: "not as asked"}
    success, psnr = (values.get(name) for name in ("edit-success", "background-psnr"))
    parts = ["" if success is None else said[success], "" if psnr is None else f"background {psnr:.1f} dB"]
    untaken = ["hardly to be seen"] if values.get("untaken") else []
    return "".join(f"; {part}" for part in (*parts, *untaken) if part)
