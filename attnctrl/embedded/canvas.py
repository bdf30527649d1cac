"""What every style needs: a composed scene on a double-size canvas, colours, edges, relief and noise fields."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass

import cv2
import numpy as np

cv2.setNumThreads(1)
Array = np.ndarray


@dataclass(frozen=True)
class StyleParams:
    """What a caption leaves open about a style, each in [0, 1]; `hue` and `light` are circular."""

    hue: float
    ground: float
    stroke: float
    texture: float
    light: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> StyleParams:
        """All parameters uniform."""
        return cls(*(float(value) for value in rng.random(5)))

    def to_dict(self) -> dict[str, float]:
        """Name -> value."""
        return asdict(self)


@dataclass(frozen=True)
class Canvas:
    """Objects before a style: `art` premultiplied float [H, W, 3], `alpha` [H, W], the scenery behind them if any."""

    art: Array
    alpha: Array
    scenery: Array | None

    def over(self, ground: Array) -> Array:
        """The objects on a ground, [H, W, 3]."""
        return self.art + (1 - self.alpha[..., None]) * ground

    def ground(self, color: Array, scenery: float = 0.55) -> Array:
        """The style's ground colour, mixed with `scenery` of the scene behind the objects, [H, W, 3]."""
        plain = np.broadcast_to(color, self.art.shape).astype(np.float32)
        if self.scenery is None:
            return plain
        return plain * (1 - scenery) + self.scenery * scenery

    def color(self) -> Array:
        """The objects' straight colour, [H, W, 3]."""
        return self.art / np.maximum(self.alpha, 1e-3)[..., None]


def oklch(lightness: float, chroma: float, hue: float) -> Array:
    """OKLCH (hue in turns) to clipped sRGB in [0, 1], [3] (B. Ottosson, 2020)."""
    a, b = chroma * np.cos(2 * np.pi * hue), chroma * np.sin(2 * np.pi * hue)
    l_, m_, s_ = (
        (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3,
        (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3,
        (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3,
    )
    linear = np.array(
        [
            4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
            -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
            -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
        ]
    ).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def luma(rgb: Array) -> Array:
    """Rec. 601 luminance, [..., 3] -> [...]."""
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def smoothstep(low: float, high: float, x: Array) -> Array:
    """Cubic step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array, b: Array, weight: Array | float) -> Array:
    """a where weight is 0, b where it is 1; a [H, W] weight spreads over channels."""
    w = weight[..., None] if isinstance(weight, np.ndarray) and weight.ndim == 2 else weight
    return a + (b - a) * w


def blur(x: Array, sigma: float) -> Array:
    """Gaussian blur, reflecting at the borders."""
    return cv2.GaussianBlur(x.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def outside(alpha: Array) -> Array:
    """Distance in pixels from the objects, 0 inside, [H, W]."""
    if not (alpha >= 0.5).any():
        return np.full(alpha.shape, 1e3, np.float32)
    return cv2.distanceTransform((alpha < 0.5).astype(np.uint8), cv2.DIST_L2, 5)


def inside(alpha: Array) -> Array:
    """Distance in pixels to the objects' rim, 0 outside, [H, W]."""
    return cv2.distanceTransform((alpha >= 0.5).astype(np.uint8), cv2.DIST_L2, 5)


def edges(picture: Array, alpha: Array, width: float) -> Array:
    """Lines about `width` pixels wide along colour edges and silhouettes, in [0, 1], [H, W]."""
    soft = blur(picture, 1.0)
    dx = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3)
    strength = np.sqrt(dx * dx + dy * dy).max(axis=2)
    core = smoothstep(0.35, 0.9, strength)
    rim = np.clip(width * 0.5 + 0.8 - np.abs(outside(alpha) - inside(alpha)), 0, 1)
    if width > 2.4:
        core = cv2.dilate(core, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    return np.maximum(blur(core, 0.5 + width * 0.12).clip(0, 1), rim)


def direction(light: float) -> tuple[float, float]:
    """Unit vector (x right, y down) that points to the light."""
    return math.cos(2 * math.pi * light), math.sin(2 * math.pi * light)


def shift(x: Array, dx: float, dy: float) -> Array:
    """Move a picture by (dx, dy) pixels, zeros from outside."""
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return cv2.warpAffine(x, matrix, (x.shape[1], x.shape[0]))


def shade(height: Array, light: float) -> Array:
    """Slope of a relief towards the light, about [-1, 1], [H, W]."""
    lx, ly = direction(light)
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    slope = -(lx * dx + ly * dy)
    return slope / np.sqrt(1 + slope * slope)


@functools.cache
def _noise_bank(octave: int) -> Array:
    rng = np.random.default_rng(1000 + octave)
    side = 512
    coarse = rng.random((max(4, side >> octave),) * 2).astype(np.float32)
    field = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def noise(shape: tuple[int, ...], octave: int, rng: np.random.Generator) -> Array:
    """A crop of a smooth noise field with features of 2**octave pixels, zero mean, unit deviation, [H, W]."""
    bank = _noise_bank(octave)
    y, x = (int(rng.integers(0, bank.shape[0] - side)) for side in shape[:2])
    return bank[y : y + shape[0], x : x + shape[1]]


def grid(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Pixel coordinates y, x, each float [H, W]."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return y, x


def stripes(shape: tuple[int, ...], period: float, angle: float, wobble: Array | float = 0.0) -> Array:
    """A sine of the given period across a direction (in turns), in [-1, 1], [H, W]."""
    y, x = grid(shape)
    across = x * math.cos(2 * math.pi * angle) + y * math.sin(2 * math.pi * angle) + wobble
    return np.sin(across * (2 * math.pi / period))


def dots(shape: tuple[int, ...], period: float) -> Array:
    """A halftone screen at 45 degrees, in [0, 1] with peaks at the dots' centres, [H, W]."""
    return 0.5 + 0.25 * (stripes(shape, period, 0.125) + stripes(shape, period, 0.375))


def vivid(rgb: Array, gain: float) -> Array:
    """Colours pushed away from their grey by `gain`."""
    grey = luma(rgb)[..., None]
    return np.clip(grey + (rgb - grey) * gain, 0, 1)


def posterize(rgb: Array, levels: int) -> Array:
    """Flat areas: median-filtered, then the brightness rounded to `levels` steps with the hue kept."""
    smooth = cv2.medianBlur((np.clip(rgb, 0, 1) * 255).astype(np.uint8), 5).astype(np.float32) / 255
    top = np.maximum(smooth.max(axis=2, keepdims=True), 1e-3)
    return np.clip(smooth / top * np.round(top * levels) / levels, 0, 1)
