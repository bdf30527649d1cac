"""The backdrop judge: which of the five backdrops stands behind the objects, in a style.

Linear discriminants of the colours of eight bands, fitted to empty scenes that the world paints, so that it saw no
artwork; its accuracy on true renders is in docs/edit-evaluations.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from attnctrl.embedded.canvas import Array, Canvas, StyleParams
from attnctrl.embedded.scenery import BACKGROUNDS, scenery
from attnctrl.embedded.styles import STYLES

NAMES = tuple(BACKGROUNDS)
_FILE = Path(__file__).parent / "weights" / "backdrops.npz"
_BANDS, _SIDE = 8, 64


class Backdrops:
    """Means [5, 24] and precision [24, 24] of every style that it was fitted to."""

    def __init__(self, known: dict[str, tuple[Array, Array]]) -> None:
        self.known = known

    @classmethod
    def load(cls, path: Path = _FILE) -> Backdrops:
        """From an npz of `save`; by default what the package ships."""
        with np.load(path) as data:
            styles = sorted({name.partition("/")[0] for name in data.files})
            return cls({style: (data[f"{style}/means"], data[f"{style}/precision"]) for style in styles})

    @classmethod
    def fit(cls, styles: tuple[str, ...], count: int = 100) -> Backdrops:
        """Fit to so many empty scenes of each backdrop in each style."""
        rng, known = np.random.default_rng(0), {}
        for style in styles:
            drawn = [[bands(_empty(style, name, rng)) for _ in range(count)] for name in NAMES]
            x = np.array(drawn)
            means = x.mean(1)
            rest = (x - means[:, None]).reshape(-1, x.shape[-1])
            spread = rest.T @ rest / len(rest) + 1e-3 * np.eye(x.shape[-1])
            known[style] = (means.astype(np.float32), np.linalg.inv(spread).astype(np.float32))
        return cls(known)

    def save(self, path: Path = _FILE) -> None:
        """Write the npz that `load` reads."""
        arrays: dict[str, Any] = {}
        for style, (means, precision) in self.known.items():
            arrays |= {f"{style}/means": means, f"{style}/precision": precision}
        np.savez_compressed(path, **arrays)

    def named(self, image: Array, style: str, objects: Array | None = None) -> str:
        """The likeliest backdrop of a uint8 picture [H, W, 3] outside of `objects`, bool [H, W]; KeyError for a style
        that it was not fitted to."""
        means, precision = self.known[style]
        gap = bands(image / 255, objects) - means
        return NAMES[int((gap @ precision * gap).sum(1).argmin())]


def bands(image: Array, objects: Array | None = None) -> Array:
    """Mean colours of eight bands from top to bottom, [24]; a band that objects fill takes its neighbours'."""
    free = np.ones(image.shape[:2], bool) if objects is None else ~objects
    rows = np.array_split(np.arange(len(image)), _BANDS)
    counts = np.array([free[band].sum() for band in rows])
    sums = np.array([(image[band] * free[band][..., None]).sum((0, 1)) for band in rows])
    if not counts.any():
        return bands(image)
    seen = np.flatnonzero(counts)
    colors = [np.interp(range(_BANDS), seen, sums[seen, i] / counts[seen]) for i in range(3)]
    return np.stack(colors, axis=1).ravel()


def _empty(style: str, name: str, rng: np.random.Generator) -> Array:
    """A backdrop without objects in a style of random parameters, float [64, 64, 3]."""
    side = 2 * _SIDE
    nothing = np.zeros((side, side, 4), np.float32)
    canvas = Canvas(nothing[..., :3], nothing[..., 3], scenery(name, (side, side), rng))
    painted = np.clip(STYLES[style].paint(canvas, StyleParams.sample(rng), rng), 0, 1)
    small: Array = cv2.resize(painted.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return small
