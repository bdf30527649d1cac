"""A map in colour over a dimmed picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

SCALE = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84), (221, 81, 58),
    (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip
"""Every tenth of `inferno` (Smith and van der Walt, CC0): lightness grows evenly, for colour-blind eyes too."""
DIM, LEAST = 0.55, 384


def overlaid(picture: Image.Image, values: np.ndarray, top: float | None = None) -> Image.Image:
    """`values` [rows, columns] >= 0 over the picture's grey: 0 leaves it, `top` (None: the maximum) covers it.

    Upsampled bicubically to the picture's size, which is enlarged to 384 px first if it is smaller.
    """
    factor = max(1, -(-LEAST // max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.NEAREST), np.float32)[..., None] * DIM
    highest = float(values.max()) if top is None else top
    level = Image.fromarray(values.astype(np.float32) / max(highest, 1e-12)).resize(size, Image.Resampling.BICUBIC)
    amount = np.asarray(level).clip(0, 1)
    cover = 0.85 * amount[..., None]
    mixed = grey * (1 - cover) + coloured(amount) * cover
    return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8))


def coloured(level: np.ndarray) -> np.ndarray:
    """Levels in [0, 1] as colours [..., 3] from 0 to 255."""
    table, places = np.array(SCALE, np.float32), np.linspace(0, 1, len(SCALE))
    return np.stack([np.interp(level, places, table[:, i]) for i in range(3)], -1)
