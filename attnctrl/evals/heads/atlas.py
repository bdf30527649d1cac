"""The head atlas: every head's perturbed and guided picture of one prompt, and what guidance by it gains."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from ...errors import NoEffectWarning, OverGuidanceWarning
from ...pipelines.generate import check_size, environment
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.presets import described
from ...processors.attaching import host_of
from ..ledger import Ledger, processes, write_file
from ..objectives import Objective
from .drawing import DrawnRun, Head, Shot, heads_of, identity, pool, text_of
from .search import Progress

PLAIN, GUIDED, PERTURBED = "plain", "guided", "perturbed"
Scores = Mapping[str, float]
"""Objective to value."""


class AtlasConfig(DrawnRun):
    """All that an atlas depends on; every head of the blocks in `where` is drawn."""

    prompt: str
    seed: int = Field(0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Cell:
    """What the objectives say of one head's two pictures."""

    guided: Scores
    perturbed: Scores


@dataclass(frozen=True)
class Atlas:
    """A finished atlas; its pictures lie in `folder`. `labels`: every block's name with its stream's."""

    config: AtlasConfig
    folder: Path
    plain: Scores
    cells: Mapping[Head, Cell]
    labels: Mapping[int, str]
    settings: Mapping[str, Any]

    def gain(self, head: Head, objective: str) -> float:
        """How much more of an objective the picture guided by a head has than the plain one."""
        return self.cells[head].guided[objective] - self.plain[objective]

    def largest(self, objective: str) -> float:
        """The largest gain or loss of any head."""
        return max(abs(self.gain(head, objective)) for head in self.cells)

    def limit(self, objective: str) -> float:
        """The end of the colour scale: 98% of the heads lie within, so that a few do not pale all others."""
        sizes = [abs(self.gain(head, objective)) for head in self.cells]
        return float(np.quantile(sizes, 0.98, method="higher")) or self.largest(objective)

    def picture(self, kind: str, head: Head | None = None) -> Path:
        """The file of the plain picture, or of a head's guided or perturbed one."""
        return picture_file(self.folder, kind, text_of([head]) if head else "")

    def as_json(self) -> dict[str, Any]:
        """All values."""
        gains = {head: {name: self.gain(head, name) for name in self.plain} for head in self.cells}
        return {
            "atlas": 1,
            **self.config.model_dump(mode="json"),
            "settings": self.settings,
            PLAIN: self.plain,
            "heads": {
                text_of([head]): {"gain": gains[head], GUIDED: cell.guided, PERTURBED: cell.perturbed}
                for head, cell in sorted(self.cells.items())
            },
        }


class AtlasRun:
    """An atlas being drawn in a folder; killed at any moment it goes on, and several processes share the heads."""

    def __init__(
        self, pipe: ControlledPipeline, config: AtlasConfig, objectives: Mapping[str, Objective], folder: Path
    ) -> None:
        check_size(pipe, config.height, config.width)
        self.pipe, self.objectives, self.folder = pipe, objectives, folder
        self.config = config.model_copy(update={"weights": described(pipe, config.model)["weights"]})
        self.heads = pool(pipe, config.where)
        self.state = processes()
        self.ledger = Ledger(folder, self.config, self.state.process_index)

    @property
    def expected(self) -> int:
        """How many pictures there will be: two a head, and the plain one."""
        return 2 * len(self.heads) + 1

    def run(self, progress: Progress | None = None) -> Atlas:
        """Draw and score what is not there yet, this process its share; then everybody has everything."""
        with self.ledger.writing():
            return self._run(progress)

    def _run(self, progress: Progress | None) -> Atlas:
        torch.set_num_threads(self.config.threads)
        begun, fresh, counted = time.monotonic(), 0, 0
        names = ["", *(text_of([head]) for head in self.heads)]
        batches = self.config.drawing.batches([Shot(name, self.config.prompt, self.config.seed) for name in names])
        for i, batch in enumerate(batches):
            pictures = len(batch) * len(_kinds(batch))
            counted += pictures
            if self._kept(batch) or i % self.state.num_processes != self.state.process_index:
                continue
            self.ledger.append(identity(batch), self._drawn(batch))
            fresh += pictures
            if progress:
                pace = (time.monotonic() - begun) / fresh
                progress(counted, self.expected, (self.expected - counted) * pace / self.state.num_processes)
        self.state.wait_for_everyone()
        self.ledger.read()
        rows = {shot.heads: row for b in batches for shot, row in zip(b, self.ledger.done[identity(b)], strict=True)}
        sites = host_of(self.pipe).sites
        return Atlas(
            config=self.config,
            folder=self.folder,
            plain=rows[""][PLAIN],
            cells={head: Cell(**rows[text_of([head])]) for head in self.heads},
            labels={site.index: site.label for site in reversed(sites)},
            settings=self._settings(),
        )

    def _drawn(self, batch: Sequence[Shot]) -> list[dict[str, Any]]:
        """The scores of a batch, its pictures on disk."""
        rows: list[dict[str, Any]] = [{} for _ in batch]
        for kind in _kinds(batch):
            drawing = replace(self.config.drawing, strength=-1.0) if kind == PERTURBED else self.config.drawing
            with warnings.catch_warnings():  # heads without effect and burnt pictures are what an atlas shows
                warnings.simplefilter("ignore", NoEffectWarning)
                warnings.simplefilter("ignore", OverGuidanceWarning)
                pictures = drawing(self.pipe, batch)
            prompts = [shot.prompt for shot in batch]
            columns = {name: one(pictures, prompts) for name, one in self.objectives.items()}
            for i, (shot, picture) in enumerate(zip(batch, pictures, strict=True)):
                save(picture, picture_file(self.folder, kind, shot.heads))
                rows[i][kind] = {name: values[i] for name, values in columns.items()}
        return rows

    def _kept(self, batch: Sequence[Shot]) -> bool:
        files = [picture_file(self.folder, kind, shot.heads) for shot in batch for kind in _kinds(batch)]
        return identity(batch) in self.ledger.done and all(file.exists() for file in files)

    def _settings(self) -> dict[str, Any]:
        """The numbers that the model brings, and where this ran."""
        own = self.pipe.settings.given()
        steps = self.config.num_inference_steps or own.get("num_inference_steps")
        width, height = Image.open(picture_file(self.folder, PLAIN)).size
        return {"steps": steps, "width": width, "height": height, **environment(self.pipe).model_dump()}


def picture_file(folder: Path, kind: str, heads: str = "") -> Path:
    """Where a picture of an atlas lies."""
    return folder / "pictures" / (f"{heads}-{kind}.png" if heads else f"{kind}.png")


def save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG, all or nothing, on disk when this returns."""
    body = BytesIO()
    picture.save(body, "PNG")
    return write_file(path, body.getvalue())


def _kinds(batch: Sequence[Shot]) -> tuple[str, ...]:
    """The pictures that a batch is drawn as."""
    return (GUIDED, PERTURBED) if heads_of(batch[0].heads) else (PLAIN,)
