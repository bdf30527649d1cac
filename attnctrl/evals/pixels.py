"""Objectives that need no weights: colour, light, contrast and sharpness of the pixels of RGB pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from PIL import Image

from ..embedded.colors import COLORS as NAMED
from ..errors import ControlError
from .objectives import Models, Score

Array: TypeAlias = np.ndarray
Pixels = Callable[[Image.Image], float]
HUES = MappingProxyType({name: color for name, color in NAMED.items() if color[1] > 0})
GRAYS = MappingProxyType({"black": 0.0, "gray": 0.6, "white": 1.0})
"""OKLab lightness of the colours without a hue."""
COLORS = (*HUES, *GRAYS)
LARGEST = 512
"""Longer side, in pixels, at which sharpness is measured."""
_NARROW, _VIVID, _NEAR = 10.0, 0.1, 0.15


def oklab(rgb: Array) -> Array:
    """sRGB in [0, 1], [..., 3], to OKLab L, a, b [..., 3] (B. Ottosson, "A perceptual color space", 2020)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ np.array(_TO_CONES).T)
    return cones @ np.array(_TO_LAB).T


# fmt: off
_TO_CONES = ((0.4122214708, 0.5363325363, 0.0514459929),
             (0.2119034982, 0.6806995451, 0.1073969566),
             (0.0883024619, 0.2817188376, 0.6299787005))
_TO_LAB = ((0.2104542553, 0.7936177850, -0.0040720468),
           (1.9779984951, -2.4285922050, 0.4505937099),
           (0.0259040371, 0.7827717662, -0.8086757660))
# fmt: on


def color(image: Image.Image, name: str) -> float:
    """How much of the picture has a colour (COLORS), 0 to 1; smooth, so that a faint tint counts a little.

    Mean over pixels of exp(10 (cos d - 1)) c / (c + 0.1), with d the angle to the hue and c the chroma in OKLab; for
    black, gray and white 1 / (1 + (D / 0.15)^2), with D the distance in OKLab.
    """
    lab = oklab(_rgb(image))
    if name in GRAYS:
        return float((1 / (1 + ((lab - (GRAYS[name], 0, 0)) ** 2).sum(-1) / _NEAR**2)).mean())
    _, *wanted = oklab(np.array(colorsys.hsv_to_rgb(*HUES[name], 1.0)))
    chroma = _chroma(lab)
    cosine = lab[..., 1:] @ (wanted / np.hypot(*wanted)) / np.maximum(chroma, 1e-9)
    return float((np.exp(_NARROW * (cosine - 1)) * chroma / (chroma + _VIVID)).mean())


def contrast(image: Image.Image) -> float:
    """Standard deviation of OKLab lightness, 0 to 0.5."""
    return float(oklab(_rgb(image))[..., 0].std())


def brightness(image: Image.Image) -> float:
    """Mean OKLab lightness, 0 to 1."""
    return float(oklab(_rgb(image))[..., 0].mean())


def darkness(image: Image.Image) -> float:
    """1 - brightness."""
    return 1 - brightness(image)


def saturation(image: Image.Image) -> float:
    """Mean OKLab chroma, 0 to 0.32."""
    return float(_chroma(oklab(_rgb(image))).mean())


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma in [0, 1], of the picture reduced to 512 px on its longer side."""
    shrink = LARGEST / max(image.size)
    if shrink < 1:
        width, height = (max(3, round(side * shrink)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    luma = _rgb(image) @ (0.299, 0.587, 0.114)
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * luma[1:-1, 1:-1]).var())


def colorfulness(image: Image.Image) -> float:
    """Colourfulness in units of 8-bit sRGB (D. Hasler, S. Suesstrunk, "Measuring colourfulness", 2003)."""
    red, green, blue = np.moveaxis(255 * _rgb(image), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    return float(np.hypot(*opponents.std((1, 2))) + 0.3 * np.hypot(*opponents.mean((1, 2))))


_PLAIN = (contrast, brightness, darkness, saturation, sharpness, colorfulness)


def make(name: str, argument: str, models: Models) -> Score:
    """The objective of a name in objectives.KINDS; ControlError for a colour that is not in COLORS."""
    if name != "color":
        return _each(next(measure for measure in _PLAIN if measure.__name__ == name))
    if argument not in COLORS:
        near = get_close_matches(argument.lower(), COLORS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(COLORS)}"
        raise ControlError(f"no color is called {argument!r}; {hint}")
    return _each(partial(color, name=argument))


def _each(measure: Pixels) -> Score:
    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        return [measure(image) for image in images]

    return score


def _rgb(image: Image.Image) -> Array:
    return np.asarray(image, np.float64) / 255


def _chroma(lab: Array) -> Array:
    return np.hypot(lab[..., 1], lab[..., 2])
