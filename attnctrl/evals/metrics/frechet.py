"""The Frechet distance of two populations of pictures, in EfficientNet-lite0's features: not FID."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .lite import Lite

WIDTH = 112
"""Features a picture: the channel means of the net's block 10, the last of lite.STYLE_BLOCKS."""


def features(lite: Lite, pictures: Sequence[Image.Image]) -> np.ndarray:
    """[n, 112]."""
    statistics, _ = lite.read(pictures)
    return statistics[:, 0, -WIDTH:]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (AB)^1/2) of the Gaussians of two populations [n, width], [m, width].

    (M. Heusel et al., "GANs trained by a two time-scale update rule", 2017.) Small populations read as farther apart.
    """
    spread = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    # the eigenvalues of AB are those of the symmetric S B S, S the root of A; rounding may make them negative
    values, vectors = np.linalg.eigh(spread[0])
    half = vectors * np.sqrt(np.maximum(values, 0))
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(half.T @ spread[1] @ half), 0))
    gap = a.mean(0) - b.mean(0)
    return float(max(0.0, gap @ gap + np.trace(spread[0]) + np.trace(spread[1]) - 2 * roots.sum()))
