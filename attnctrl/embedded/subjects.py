"""The subject judge: which subjects are where in a picture, and in which colours.

ImageNet features (features.py) and a small convolutional head that learns from the judges' artwork only, which the
generator never saw (subject_training.py); its accuracy on true renders of the generator's artwork is in subjects.json.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.features import CELL, CHANNELS, FeatureMaps
from attnctrl.embedded.scenes import PAIRED

SUBJECTS = PAIRED.subjects
COLOR_NAMES = tuple(COLORS)
LEAST = 1.0
"""Cells of 8 px that an object fills at least."""
PAIR_SCALES = (1.5, 2.0)
"""Sizes at which small objects are read best."""
OUTLINE = 0.25
"""Least probability within an outline (of 0.2 to 0.5, the best for masks and boxes of 198 true pairs)."""
FINE = 4
"""Pixels to a cell where small objects are placed, outlined and counted."""
_DEFAULT = Path(__file__).parent / "weights" / "subjects.safetensors"
_WIDTH = 128


class SubjectHead(nn.Module):
    """Features [n, 396, h, w] to logits of the subjects and of nothing [n, 17, h, w], and of colours [n, 8, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm2d(CHANNELS, affine=False)
        self.body = nn.Sequential(
            *(nn.Conv2d(CHANNELS, _WIDTH, 1), nn.ReLU(), nn.Dropout2d(0.2)),
            *(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.2)),
        )
        self.out = nn.Conv2d(_WIDTH, len(SUBJECTS) + 1 + len(COLOR_NAMES), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps of logits."""
        where, colors = self.out(self.body(self.scale(x))).split([len(SUBJECTS) + 1, len(COLOR_NAMES)], 1)
        return where, colors


@dataclass(frozen=True)
class Found:
    """A subject in a picture: the cells it fills, its centre (x, y) in shares of the picture, and its likeliest color.

    The color says something only where one of colors.COLORS was asked for.
    """

    subject: str
    cells: float
    center: tuple[float, float]
    color: str


@dataclass(frozen=True)
class Seen:
    """What the judge saw: probabilities `where` [n, 17, h, w] (subjects, nothing) and `colors` [n, 8, h, w].

    `cell` is the pixels of a picture to a cell of these maps.
    """

    where: np.ndarray
    colors: np.ndarray
    cell: int = CELL

    def subjects(self, among: Sequence[str] = SUBJECTS) -> list[str]:
        """The subject that fills most of each picture."""
        rows = [SUBJECTS.index(name) for name in among]
        return [among[int(i)] for i in self.where[:, rows].sum((2, 3)).argmax(1)]

    def color_of(self, subjects: Sequence[str]) -> list[str]:
        """The color of the asked subject of each picture, read where it stands."""
        rows = [SUBJECTS.index(name) for name in subjects]
        return [_color(where[i], colors) for i, where, colors in zip(rows, self.where, self.colors, strict=True)]

    def found(self, most: int = 2) -> list[list[Found]]:
        """The subjects that fill most of each picture, the largest first; none that fills less than LEAST cells."""
        every = []
        for where, colors in zip(self.where, self.colors, strict=True):
            filled = where[:-1].sum((1, 2)) * (self.cell / CELL) ** 2
            largest = [int(i) for i in np.argsort(-filled)[:most] if filled[i] >= LEAST]
            every.append([self._object(i, where[i], colors, float(filled[i])) for i in largest])
        return every

    def counts(self) -> list[int]:
        """How many objects stand in each picture: connected parts of one subject, of LEAST cells or more."""
        least = LEAST * (CELL / self.cell) ** 2
        counted = []
        for where in self.where:
            likeliest, parts = where.argmax(0), 0
            for number in set(likeliest.ravel().tolist()) - {len(SUBJECTS)}:
                sizes = cv2.connectedComponentsWithStats((likeliest == number).astype(np.uint8), connectivity=4)[2]
                parts += int((sizes[1:, cv2.CC_STAT_AREA] >= least).sum())
            counted.append(parts)
        return counted

    def mask(self, i: int, subject: str) -> np.ndarray:
        """Where a subject stands in picture `i`, its largest connected part: bool [H, W], in pixels."""
        own = self.where[i, SUBJECTS.index(subject)]
        size = (own.shape[1] * self.cell, own.shape[0] * self.cell)
        filled = (cv2.resize(own, size, interpolation=cv2.INTER_LINEAR) > OUTLINE).astype(np.uint8)
        parts, labels, sizes, _ = cv2.connectedComponentsWithStats(filled)
        return np.asarray(labels == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax() if parts > 1 else filled > 0)

    def _object(self, number: int, heat: np.ndarray, colors: np.ndarray, cells: float) -> Found:
        total = float(heat.sum())
        y, x = ((np.arange(side) + 0.5) / side for side in heat.shape)
        center = (float(heat.sum(0) @ x) / total, float(heat.sum(1) @ y) / total)
        return Found(SUBJECTS[number], cells, center, _color(heat, colors))


def _color(heat: np.ndarray, colors: np.ndarray) -> str:
    return COLOR_NAMES[int((np.log(colors + 1e-6) * heat).sum((1, 2)).argmax())]


class SubjectJudge:
    """Names and places the subjects of pictures; `calibration` holds its accuracy on true renders."""

    def __init__(self, head: SubjectHead, calibration: dict[str, Any]) -> None:
        self.head, self.calibration, self.features = head.eval(), calibration, FeatureMaps()

    @classmethod
    def load(cls, path: Path = _DEFAULT) -> SubjectJudge:
        """From safetensors with its JSON beside it; by default what the package ships."""
        head = SubjectHead()
        head.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
        return cls(head, json.loads(path.with_suffix(".json").read_text()))

    @torch.no_grad()
    def __call__(self, images: np.ndarray, scales: Sequence[float] = (1.0,), cell: int = CELL) -> Seen:
        """Judge uint8 pictures [n, H, W, 3]: the mean of the readings of them enlarged, on a grid of so many pixels."""
        cells = (images.shape[1] // cell, images.shape[2] // cell)
        maps = [self._read(images, scale, cells) for scale in scales]
        where, colors = (torch.stack([read[i] for read in maps]).mean(0).numpy() for i in range(2))
        return Seen(where, colors, cell)

    def _read(self, images: np.ndarray, scale: float, cells: tuple[int, int]) -> list[Tensor]:
        width, height = (round(scale * side) for side in (images.shape[2], images.shape[1]))
        large = np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in images])
        parts = [self.head(part.float()) for part in self.features(large).split(128)]
        return [_on_grid(torch.cat([part[i] for part in parts]).softmax(1), cells) for i in range(2)]


def _on_grid(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """Maps on another grid: means over its cells, or between the given ones where it is finer."""
    finer = cells[0] > x.shape[2]
    return interpolate(x, cells, mode="bilinear") if finer else adaptive_avg_pool2d(x, cells)


def all_found(found: Sequence[Found], subjects: Sequence[str]) -> bool:
    """Whether the largest objects are these subjects."""
    return {thing.subject for thing in found[: len(subjects)]} == set(subjects)


def in_order(found: Sequence[Found], subjects: Sequence[str], relation: str) -> bool:
    """Whether all are found and each stands to the next as asked, by their centres."""
    if not all_found(found, subjects):
        return False
    places = {thing.subject: thing.center for thing in found[: len(subjects)]}
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    return all(sign * (places[one][axis] - places[next_][axis]) > 0 for one, next_ in itertools.pairwise(subjects))


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around a mask bool [H, W]; zeros where it is empty."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if len(rows) == 0:
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0, width) * max(0, height)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)]
    return shared / max(1, sum(areas) - shared)
