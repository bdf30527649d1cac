"""How well an embedded model draws what it is asked, measured by judges that are calibrated on true pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnctrl.embedded import MODELS, artwork, digest, intervals, model_folder
from attnctrl.embedded.canvas import Array
from attnctrl.embedded.cases import Case, suite, true_picture
from attnctrl.embedded.drawing import Drawer
from attnctrl.embedded.evaluation_report import markdown, sheet
from attnctrl.embedded.reading import Reader, Reading, gaps
from attnctrl.errors import ControlError

SHEETS = ("trained", "held out", "relation", "relation, colors", "three")


def evaluate(model: Path | str, out: Path, per: int = 1, seed: int = 0, cache: Path | None = None) -> dict[str, Any]:
    """Draw, judge and write evaluation.json, evaluation.md and the SHEETS into `out`; the JSON's content.

    `model` is a shipped model's name or a pipeline folder. `per` is the number of pictures of each shown (subject,
    style) pair; cases.suite says what else grows with it. `cache` is the artwork's.
    """
    folder = model_folder(str(model)) if str(model) in MODELS else Path(model)
    if not (folder / "attnctrl.json").exists():
        raise ControlError(f"{folder} is no embedded model; give {' or '.join(MODELS)}, or a folder of `export`")
    art, reader, drawer, groups = artwork.load(cache), Reader(), Drawer(folder), suite(per, seed)
    begin = time.perf_counter()
    drawn = {name: _draw(drawer, cases) for name, cases in groups.items() if name != "shifted"}
    with drawer.shifted(drawer.columns):
        shifted = _draw(drawer, groups["shifted"])
    count = sum(len(pictures) for pictures in drawn.values()) + len(shifted)
    seconds = (time.perf_counter() - begin) / count
    true = {name: [true_picture(case, art) for case in groups[name]] for name in drawn}
    readings = {name: reader(groups[name], pictures) for name, pictures in drawn.items()}
    true_readings = {name: reader(groups[name], pictures) for name, pictures in true.items()}
    result: dict[str, Any] = {
        "model": folder.name,
        "weights": digest(folder),
        "pipeline": type(drawer.pipeline).__name__,
        "per": per,
        "seed": seed,
        "seconds a picture": round(seconds, 3),
        "threads": torch.get_num_threads(),
        "right": {
            name: {"pictures": len(groups[name]), "drawn": reading.shares(), "true": true_readings[name].shares()}
            for name, reading in readings.items()
        },
        "trained, by style": readings["trained"].by("style"),
        "trained, by subject": readings["trained"].by("subject"),
        "differences": _differences(readings, true_readings),
        "shifted": _shift(readings["trained"], reader(groups["shifted"], shifted)),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "evaluation.md").write_text(markdown(result))
    for name in SHEETS:
        sheet(out / f"{name.replace(', ', '-').replace(' ', '-')}.png", groups[name], drawn[name], true[name], seed)
    return result


def _draw(drawer: Drawer, cases: list[Case]) -> list[Array]:
    pictures: dict[int, Array] = {}
    for size in sorted({case.size for case in cases}):
        rows = [i for i, case in enumerate(cases) if case.size == size]
        drawn = drawer([cases[i].prompt for i in rows], [cases[i].seed for i in rows], size)
        pictures |= dict(zip(rows, drawn, strict=True))
    return [pictures[i] for i in range(len(cases))]


def _differences(drawn: dict[str, Reading], true: dict[str, Reading]) -> dict[str, dict[str, Any]]:
    """For each style parameter, how far two pictures of a style differ: drawn, and the world's own."""
    found: dict[str, dict[str, Any]] = {}
    for name, readings in (("drawn", drawn), ("true", true)):
        cases = readings["trained"].cases + readings["held out"].cases
        params = np.concatenate([readings["trained"].params, readings["held out"].params])
        for param, values in gaps(cases, params).items():
            if len(values):
                found.setdefault(param, {"pairs": len(values)})[name] = intervals.mean(values)
    return found


def _shift(trained: Reading, shifted: Reading) -> dict[str, dict[str, Any]]:
    """The same prompts and seeds, unmoved and a grid's width further right: shares, and the paired difference."""
    rows = [trained.cases.index(case) for case in shifted.cases]
    return {
        name: {
            "pictures": len(rows),
            "unmoved": intervals.share(trained.right[name][rows]),
            "moved": intervals.share(moved),
            "difference": intervals.mean(moved.astype(float) - trained.right[name][rows]),
        }
        for name, moved in shifted.right.items()
    }
