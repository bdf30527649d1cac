"""Metrics by EfficientNet-lite0, an ImageNet network whose weights ship in a package (extra `[eval]`).

They bear its name: they are not CLIP-I, DINO or FID, and published numbers of those do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, relu6

from ...embedded.latents import pixels
from ...errors import ControlError
from ..objectives import Models
from .metric import DrawnSet, mean_of_pairs

STYLE_BLOCKS = (2, 4, 7, 10)
SIDE = 224
"""Pixels of the shorter side that the network sees at most; small pictures are enlarged twice."""
_BATCH = 16


def make(name: str, argument: str, models: Models) -> Callable[[DrawnSet], float | None]:
    """`lite-style` or `lite-diversity`; ControlError without the extra."""
    try:
        lite = models.get(Lite)
    except ImportError as fault:
        raise ControlError(f"{name} needs {fault.name}: pip install 'attnctrl[eval]'") from fault
    return {"lite-style": lite.style, "lite-diversity": lite.diversity}[name]


class Lite:
    """Style statistics and deep features of pictures; the reading of the last set is kept for the next metric."""

    def __init__(self) -> None:
        from ...embedded.features import efficientnet

        self.net: Any = efficientnet()
        self._last: tuple[DrawnSet, np.ndarray, np.ndarray] | None = None

    def style(self, drawn: DrawnSet) -> float | None:
        """Likeness in style, 0 to 1: the mean of 1 / (1 + d) over all pairs, or over the pairs with a reference.

        d is the mean over channels of the squared differences of their means and standard deviations, in units of the
        two pictures' mean variance (after X. Huang, S. Belongie, "Arbitrary style transfer", 2017).
        """
        statistics, _ = self._of(drawn)
        if drawn.reference is not None:
            (leader, _), every = self.read([drawn.reference]), statistics
            pairs = [(leader[0], one) for one in every]
        else:
            pairs = list(combinations(statistics, 2))
        return float(np.mean([_likeness(a, b) for a, b in pairs])) if pairs else None

    def diversity(self, drawn: DrawnSet) -> float | None:
        """1 - mean cosine of deep features over all pairs of the set: what it shows differs; 0 for copies."""
        _, deep = self._of(drawn)
        if len(deep) < 2:
            return None
        return 1 - mean_of_pairs(deep / np.linalg.norm(deep, axis=1, keepdims=True))

    def read(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Statistics [n, 2, 256] (means and standard deviations of STYLE_BLOCKS' channels), deep features [n, 320]."""
        batches = [self._batch(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)]
        return np.concatenate([a for a, _ in batches]), np.concatenate([b for _, b in batches])

    def _of(self, drawn: DrawnSet) -> tuple[np.ndarray, np.ndarray]:
        if self._last is None or self._last[0] is not drawn:
            self._last = (drawn, *self.read(drawn.pictures))
        return self._last[1:]

    @torch.no_grad()
    def _batch(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        if len({picture.size for picture in pictures}) > 1:
            parts = [self._batch([picture]) for picture in pictures]
            return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
        x = pixels(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        scale = min(2.0, SIDE / min(pictures[0].size))
        x = interpolate(x, scale_factor=scale, mode="bicubic", antialias=scale < 1)
        h, found = relu6(self.net._bn0(self.net._conv_stem(x.contiguous(memory_format=torch.channels_last)))), []
        for i, block in enumerate(self.net._blocks):
            h = block(h)
            if i in STYLE_BLOCKS:
                flat = h.double().flatten(2)
                found.append(torch.stack([flat.mean(2), flat.std(2, correction=0)], 1))
        return torch.cat(found, 2).numpy(), h.double().mean((2, 3)).numpy()


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    unit = (a[1] ** 2 + b[1] ** 2) / 2 + 1e-3
    return float(1 / (1 + (((a - b) ** 2).sum(0) / unit).mean()))
