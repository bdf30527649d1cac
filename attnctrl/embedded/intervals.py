"""95% intervals of shares and means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float, float]
"""A figure, and its lower and upper end."""
_Z = 1.959964


def share(right: Sequence[bool] | np.ndarray) -> Interval:
    """The share of true values with its Wilson interval (E. B. Wilson, 1927); ValueError for no values."""
    n = len(right)
    if n == 0:
        raise ValueError("a share needs at least one value")
    p = float(np.mean(right))
    middle, spread = p + _Z**2 / (2 * n), _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    low, high = ((middle + sign * spread) / (1 + _Z**2 / n) for sign in (-1, 1))
    return p, max(0.0, float(low)), min(1.0, float(high))


def mean(values: Sequence[float] | np.ndarray, draws: int = 4000) -> Interval:
    """The mean with its bootstrap interval over the values; ValueError for no values."""
    x = np.asarray(values, float)
    if len(x) == 0:
        raise ValueError("a mean needs at least one value")
    picks = np.random.default_rng(0).integers(0, len(x), (draws, len(x)))
    low, high = np.quantile(x[picks].mean(1), [0.025, 0.975])
    return float(x.mean()), float(low), float(high)
