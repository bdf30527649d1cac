"""How alike two pictures are inside a part of them: PSNR, SSIM, and SSIM of their edges."""

from __future__ import annotations

import math
from typing import TypeAlias

import cv2
import numpy as np
from skimage.metrics import structural_similarity

Array: TypeAlias = np.ndarray
MOST = 60.0
"""The PSNR of equal pictures, in dB; no more is told apart."""
_LOW, _HIGH = 100, 200
"""Canny's thresholds on 8-bit grey."""


def psnr(a: Array, b: Array, part: Array) -> float | None:
    """Peak signal-to-noise ratio, dB, of uint8 pictures [H, W, 3] in `part`, bool [H, W]; None where it is empty."""
    if not part.any():
        return None
    error = float((((a[part].astype(float) - b[part]) / 255) ** 2).mean())
    return min(MOST, -10 * math.log10(error)) if error else MOST


def ssim(a: Array, b: Array, part: Array | None = None) -> float | None:
    """Mean structural similarity of uint8 pictures [H, W] or [H, W, C] (Z. Wang et al., 2004) over `part`, bool [H, W].

    Gaussian windows of deviation 1.5 over 11 px; the map's mean is taken over the part's pixels, whose windows also see
    around it. None where it is empty.
    """
    if part is not None and not part.any():
        return None
    values: Array = structural_similarity(
        a, b, data_range=255, channel_axis=-1 if a.ndim == 3 else None, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )[1]  # fmt: skip
    if values.ndim == 3:
        values = values.mean(-1)
    return float((values if part is None else values[part]).mean())


def canny_ssim(a: Array, b: Array, part: Array | None = None) -> float | None:
    """SSIM of the Canny edges of uint8 pictures [H, W, 3], as ConsistEdit measures structure (arXiv 2510.17803)."""
    edges = [cv2.Canny(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), _LOW, _HIGH) for x in (a, b)]
    return ssim(edges[0], edges[1], part)


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two masks, bool [...]; 1 where both are empty."""
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


def widened(part: Array, by: int) -> Array:
    """A mask, bool [H, W], grown by so many pixels."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    grown: Array = cv2.dilate(part.astype(np.uint8), kernel) > 0
    return grown
