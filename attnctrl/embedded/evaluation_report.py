"""An evaluation as a Markdown table, and as sheets of true and drawn pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnctrl.embedded import aims
from attnctrl.embedded.canvas import Array
from attnctrl.embedded.cases import Case
from attnctrl.embedded.intervals import Interval
from attnctrl.embedded.sheet import save_grid

_COLUMNS, _SHOWN = 4, 32


def _figure(value: Interval) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*value)


def markdown(result: dict[str, Any]) -> str:
    """The aims, what was right, how far styles differ and what moved positions do, each with its 95% interval."""
    lines = [
        f"{result['model']} ({result['pipeline']}), seed {result['seed']}: "
        f"{result['seconds a picture']:.2f} s a picture on {result['threads']} thread(s).",
        "",
        aims.table([result]),
        "",
        "| prompts | asked | pictures | drawn | true renders |",
        "|---|---|---|---|---|",
    ]
    for name, group in result["right"].items():
        for what, value in group["drawn"].items():
            cells = (name, what, str(group["pictures"]), _figure(value), _figure(group["true"][what]))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| two pictures of a style differ in | pairs | drawn | true renders |", "|---|---|---|---|"]
    for name, value in result["differences"].items():
        lines.append(f"| {name} | {value['pairs']} | {_figure(value['drawn'])} | {_figure(value['true'])} |")
    lines += ["", "| positions | pictures | unmoved | a grid further right | difference |", "|---|---|---|---|---|"]
    for name, value in result["shifted"].items():
        cells = (name, str(value["pictures"]), *(_figure(value[k]) for k in ("unmoved", "moved", "difference")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sheet(path: Path, cases: Sequence[Case], drawn: Sequence[Array], true: Sequence[Array], seed: int) -> Path:
    """Up to 32 random cases, each a true render on the left and the drawn picture on the right."""
    chosen = np.random.default_rng(seed).permutation(len(cases))[:_SHOWN]
    tiles = []
    for i in chosen:
        between = np.full((true[i].shape[0], 2, 3), 255, np.uint8)
        tiles.append(np.concatenate([true[i], between, drawn[i]], axis=1))
    return save_grid(path, tiles, _COLUMNS, [cases[i].prompt for i in chosen])
