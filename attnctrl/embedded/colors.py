"""The colors that captions name."""

from __future__ import annotations

COLORS = {
    "red": (0.99, 0.85),
    "orange": (0.08, 0.95),
    "yellow": (0.145, 0.9),
    "green": (0.36, 0.75),
    "blue": (0.60, 0.80),
    "purple": (0.76, 0.65),
    "pink": (0.92, 0.50),
    "gray": (0.0, 0.0),
}
"""Name -> hue in turns and saturation."""
