"""A run as one self-contained page: the table of methods, the trade-off, and the pictures, worst sets first."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..metrics.kinds import KINDS, higher_is_better, says
from .arms import Arm
from .config import item_seed
from .edit_sheet import beside
from .finished import Finished
from .plot import colours, sweep_plots, tradeoff
from .summary import Cost, Figure, Summary, worst_first

TEMPLATE = "report.html.jinja"
CELLS, AT_FIRST = 1000, 6
"""How many cells the page shows unless asked for more, and how many methods are chosen at first."""
TILE, GAP, BYTES = 96, 2, 6_500_000
"""Pixels of a picture's longer side, at most; pixels between two; what all pictures should take together."""
PACKINGS = ((TILE, 88), (TILE, 80), (TILE, 70), (TILE, 60), (80, 60), (64, 60), (48, 60))
"""Pixels and WebP's quality to choose from."""

_SETS = {
    "over": "style consistency",
    "title": "Style consistency",
    "item": "set",
    "items": "sets of prompts",
    "asks": "How alike are pictures of one set in style, and what do the methods give up for it?",
    "copies": "copies of the leader, which no method should become",
    "copy": "copies the leader",
    "took": "to draw all of its pictures, without measuring",
}
TOLD = {
    "style": _SETS,
    "heads": _SETS,
    "edit": {
        "over": "edits",
        "title": "Edits",
        "item": "edit",
        "items": "edits",
        "asks": "Which edits happen as asked, and what do the methods change besides?",
        "copies": "the source itself, which no method should become",
        "copy": "the source itself",
        "took": "to draw the edit, without its source and without measuring",
    },
}
"""What a page calls things, by the kind of its run."""


def page(run: Finished, summary: Summary, costs: Mapping[str, Cost], rows: int | None = None) -> str:
    """HTML that loads nothing. `rows`: how many sets to show, worst first; None: as many as make 1000 cells.

    ControlError for a picture that is not what was drawn.
    """
    arms = [one.arm for one in summary.arms]
    shown = worst_first(run, summary)[: rows or max(1, CELLS // len(arms))]
    small = tuple(reversed(summary.axes)) if summary.axes else tuple(summary.metrics[:2])
    room = FileSystemLoader(Path(__file__).parent)
    files = Environment(loader=room, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return files.get_template(TEMPLATE).render(
        run=run,
        summary=summary,
        costs=costs,
        told=TOLD[run.config.kind],
        settings=_settings(run),
        troubles={"failed": _troubles(run, "failed"), "warned": _troubles(run, "warned")},
        columns=_columns(summary),
        groups=_groups(summary, run),
        colours=colours(arms),
        plots=[plot for size in ((1160, 600), (366, 400)) if (plot := tradeoff(summary, *size))],
        sweeps=sweep_plots(summary),
        sets=_sets(run, summary, shown),
        chosen=_chosen(summary),
        small=[summary.metrics.index(name) for name in small if name in summary.metrics],
        gap=GAP,
        signed=signed,
        figure=figure,
        name_of=name_of,
    )


def signed(value: float, digits: int = 3, plus: bool = False) -> str:
    """A number with a true minus sign, and with a plus where asked for."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else f"{'−' if value < 0 else '+' if plus else ''}{text}"


def figure(one: Figure, digits: int = 3, plus: bool = False) -> tuple[str, str]:
    """A mean and its interval as texts."""
    return signed(one.mean, digits, plus), f"[{signed(one.low, digits)}, {signed(one.high, digits)}]"


def name_of(metric: str, metrics: Sequence[str]) -> str:
    """A metric's name without the place of its weights, where that leaves no doubt."""
    name = metric.partition(":")[0]
    alone = sum(other.partition(":")[0] == name for other in metrics) == 1
    return name if name in KINDS and alone else metric


def _columns(summary: Summary) -> list[dict[str, Any]]:
    found = []
    for name in summary.metrics:
        largest = max(abs(one.means[name].mean) for one in summary.arms if name in one.means)
        found.append(
            {
                "key": name,
                "name": name_of(name, summary.metrics),
                "says": says(name) or "an objective of the user’s own",
                "up": higher_is_better(name),
                "digits": 3 if largest < 10 else 2 if largest < 100 else 1,
            }
        )
    return found


def _groups(summary: Summary, run: Finished) -> list[list[dict[str, Any]]]:
    """The table's rows, methods of one series together, in the run's order."""
    rows: list[dict[str, Any]] = [
        {
            "number": number,
            "one": one,
            "series": one.arm.series or one.arm.name,
            "done": len(run.sets) - one.missing - one.failed,
        }
        for number, one in enumerate(summary.arms)
    ]
    first = {row["series"]: row["number"] for row in reversed(rows)}
    rows.sort(key=lambda row: first[row["series"]])
    return [list(group) for _, group in groupby(rows, key=lambda row: row["series"])]


def _settings(run: Finished) -> dict[str, str]:
    """What was run, for people."""
    config, made = run.config, run.config.environment
    size = f"{config.width or 'own'} × {config.height or 'own'} px" if config.width or config.height else None
    found = {
        "model": config.model,
        "weights": config.weights,
        "sets": f"{len(run.sets)} of {Path(config.sets).name} ({config.sets_digest})",
        "seed": f"{config.seed}; every set has its own, made of it",
        "steps": config.num_inference_steps or "the model’s own number",
        "picture": size or "the model’s own size",
        "guidance": config.guidance_scale if config.guidance_scale is not None else "the model’s own",
        "true CFG": config.true_cfg_scale,
        "negative prompt": config.negative_prompt,
        "batch": f"{config.batch_size} pictures at most",
        "threads": f"{config.threads} a process",
        "computed with": made
        and f"attnctrl {made.attnctrl}, torch {made.torch}, diffusers {made.diffusers}, {made.dtype} on {made.device}",
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _troubles(run: Finished, kind: str) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Every sentence with the methods and sets that it is of."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in run.rows.values():
        if says := getattr(row, kind):
            found.setdefault(says, {}).setdefault(row.arm, []).append(row.set)
    return [(says, list(arms.items())) for says, arms in found.items()]


def _chosen(summary: Summary) -> set[int]:
    """Which methods are shown at first: the baseline, then those without settings, then others."""
    order = sorted(
        range(len(summary.arms)),
        key=lambda i: (summary.arms[i].arm.name != summary.baseline, bool(summary.arms[i].arm.swept)),
    )
    plain = [i for i in order if not summary.arms[i].arm.swept or summary.arms[i].arm.name == summary.baseline]
    return set((plain if len(plain) > 2 else order)[:AT_FIRST])


def _sets(run: Finished, summary: Summary, shown: Sequence[str]) -> Iterator[dict[str, Any]]:
    arms = [one.arm for one in summary.arms]
    steering = [arm for arm in arms if arm.control] or arms
    packing = _packing(run, arms, shown)
    for one in shown:
        found = [row for arm in arms if (row := run.rows.get((arm.name, one)))]
        drawn = [row for arm in steering if (row := run.row(arm, one))]
        kept = [[v for row in drawn if (v := row.values.get(name)) is not None] for name in summary.metrics]
        yield {
            "one": run.sets[one],
            "before": _before(run, arms, one, packing),
            "seed": found[0].seed if found else item_seed(run.config.seed, run.sets[one]),
            "means": [float(np.mean(values)) if values else None for values in kept],
            "cells": [_cell(run, arm, one, summary.metrics, packing) for arm in arms],
        }


def _before(run: Finished, arms: Sequence[Arm], one: str, packing: tuple[int, int]) -> list[dict[str, str]]:
    """What stands before an item's pictures: a set's reference, an edit's source and regions."""
    item = run.sets[one]
    if run.config.kind == "edit":
        says = {"source": "source", "region": "may change", "mask": "should change"}
        return [{"picture": _uri([picture], packing), "says": says[name]} for name, picture in beside(run, arms, one)]
    if item.reference is None:
        return []
    return [{"picture": _uri([item.reference], packing), "says": ": ".join(filter(None, ("reference", item.caption)))}]


def _cell(run: Finished, arm: Arm, one: str, metrics: Sequence[str], packing: tuple[int, int]) -> dict[str, Any]:
    row = run.rows.get((arm.name, one))
    pictures = run.pictures(arm, one)
    return {
        "row": row,
        "failed": row and row.failed,
        "source": _uri(pictures, packing) if pictures else None,
        "count": len(pictures),
        "across": across(len(pictures)),
        "values": [row and row.values.get(name) for name in metrics],
    }


def _packing(run: Finished, arms: Sequence[Arm], shown: Sequence[str]) -> tuple[int, int]:
    """Pixels of a picture and WebP's quality: the best with which all together stay small, judged by some of them."""
    items = [(arm, one) for one in shown for arm in arms if run.row(arm, one)]
    some = [run.pictures(*item) for item in items[:: max(1, len(items) // 12)]]
    for packing in PACKINGS[:-1]:
        taken = sum(len(_webp(montage(pictures, packing[0]), packing[1])) for pictures in some)
        if taken * len(items) <= BYTES * len(some):
            return packing
    return PACKINGS[-1]


def across(count: int) -> int:
    """How many pictures stand side by side."""
    return count if count < 4 else ceil(sqrt(count))


def montage(pictures: Sequence[Image.Image], tile: int = TILE) -> Image.Image:
    """The pictures in rows, small, with clear gaps."""
    small = [picture.convert("RGB") for picture in pictures]
    for picture in small:
        picture.thumbnail((tile, tile), Image.Resampling.LANCZOS)
    wide, high = max(picture.width for picture in small), max(picture.height for picture in small)
    columns = across(len(small))
    lines = ceil(len(small) / columns)
    sheet = Image.new("RGBA", (columns * (wide + GAP) - GAP, lines * (high + GAP) - GAP))
    for number, picture in enumerate(small):
        sheet.paste(picture, (number % columns * (wide + GAP), number // columns * (high + GAP)))
    return sheet


def _webp(sheet: Image.Image, quality: int) -> bytes:
    body = BytesIO()
    sheet.save(body, "WEBP", quality=quality, method=4)
    return body.getvalue()


def _uri(pictures: Sequence[Image.Image], packing: tuple[int, int]) -> str:
    return f"data:image/webp;base64,{b64encode(_webp(montage(pictures, packing[0]), packing[1])).decode()}"
