"""A run read back from its folder, finished or not: configuration, sets, rows and pictures, each checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from ...descriptions import explain
from ...errors import ControlError
from ..edits.reading import read_edits
from ..ledger import CONFIG, entries
from .arms import Arm
from .config import SETS, Row, RunConfig, digest
from .run import damaged_file, merged
from .sets import Item, read_sets


@dataclass(frozen=True)
class Finished:
    """What a folder holds. `rows` by arm and set; an item that is not there yet is missing from them."""

    folder: Path
    config: RunConfig
    sets: Mapping[str, Any]
    rows: Mapping[tuple[str, str], Row]

    @property
    def missing(self) -> int:
        """How many items are not done yet."""
        return len(self.sets) * len(self.config.arms) - len(self.rows)

    @property
    def failed(self) -> Sequence[Row]:
        """Items that could not be drawn or measured."""
        return [row for row in self.rows.values() if row.failed is not None]

    def row(self, arm: Arm, one: str) -> Row | None:
        """A finished item; None where it is missing or failed."""
        row = self.rows.get((arm.name, one))
        return row if row is not None and row.failed is None else None

    def values(self, arm: Arm, metric: str) -> np.ndarray:
        """A metric of every set, in order; NaN where there is none."""
        rows = [self.row(arm, one) for one in self.sets]
        found = [None if row is None else row.values.get(metric) for row in rows]
        return np.array([np.nan if value is None else value for value in found])

    def pictures(self, arm: Arm, one: str) -> list[Image.Image]:
        """The pictures of an item, RGB, in order; none where it is missing. ControlError for one that is damaged."""
        row = self.row(arm, one)
        return [] if row is None else self._opened(row.pictures)

    def beside(self, arm: Arm, one: str) -> dict[str, Image.Image]:
        """What is shown with an item, by the stem of its file: an edit's source and masks; as `pictures`."""
        row = self.row(arm, one)
        if row is None:
            return {}
        stems = [Path(name).stem.removeprefix(f"{one}-") for name in row.beside]
        return dict(zip(stems, self._opened(row.beside), strict=True))

    def _opened(self, files: Mapping[str, str]) -> list[Image.Image]:
        if name := damaged_file(self.folder, files):
            raise ControlError(
                f"{self.folder / name} is not what was drawn; give the command that began the run, which draws it again"
            )
        opened = []
        for name in files:
            with Image.open(self.folder / name) as image:
                opened.append(image.convert("RGB"))
        return opened


def read_run(folder: Path) -> Finished:
    """The run of a folder; ControlError says what is wrong with it."""
    if not (folder / CONFIG).is_file():
        raise ControlError(f"{folder} holds no run: {CONFIG} is missing; give the --out of attnctrl eval")
    try:
        config = RunConfig.model_validate_json((folder / CONFIG).read_bytes())
        lines = [entry["rows"] for path in sorted(folder.glob("results-*.jsonl")) for entry in entries(path)]
        rows = merged(folder, lines)
    except ValidationError as fault:
        raise ControlError(f"{folder} holds no run of attnctrl eval: {explain(fault)}") from None
    if not (folder / SETS).is_file():
        raise ControlError(f"{folder} has drawn nothing yet; give the command that began it again")
    sets: Sequence[Item] = read_edits(folder / SETS) if config.kind == "edit" else read_sets(folder / SETS)
    if digest(sets) != config.sets_digest:
        raise ControlError(f"{folder / SETS} is not what the run began with; give the command that began it again")
    return Finished(folder, config, {one.id: one for one in sets}, rows)
