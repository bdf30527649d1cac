"""The painted styles and the register of all styles: each turns a composed canvas into a picture.

A style declares which of its parameters visibly matter in it; those are the ground truth that evaluations score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from attnctrl.embedded.canvas import (
    Array,
    Canvas,
    StyleParams,
    blur,
    direction,
    dots,
    edges,
    inside,
    luma,
    mix,
    noise,
    oklch,
    outside,
    posterize,
    shade,
    shift,
    smoothstep,
    vivid,
)

Painter = Callable[[Canvas, StyleParams, np.random.Generator], Array]


@dataclass(frozen=True)
class Style:
    """A named painter; `params` visibly matter in it, `colors` says whether an object's own colour shows."""

    name: str
    paint: Painter
    params: tuple[str, ...]
    colors: bool
    named: bool = True


STYLES: dict[str, Style] = {}


def style(name: str, params: str, colors: bool, named: bool = True) -> Callable[[Painter], Painter]:
    """Register a painter under a name."""

    def register(paint: Painter) -> Painter:
        STYLES[name] = Style(name, paint, tuple(params.split()), colors, named)
        return paint

    return register


@style("flat icon", "hue ground light", colors=True)
def flat_icon(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Posterised shapes that throw a long flat shadow on a plain ground."""
    ground = canvas.ground(oklch(0.42 + 0.5 * p.ground, 0.11, p.hue))
    lx, ly = direction(p.light)
    shadow = canvas.alpha
    for step in (1, 2, 4, 8, 16, 32):
        shadow = np.maximum(shadow, shift(shadow, -lx * step, -ly * step))
    ground = ground * (1 - 0.34 * shadow[..., None])
    art = vivid(posterize(canvas.color(), 5), 1.2)
    return mix(ground, art, canvas.alpha)


@style("3d render", "hue ground light", colors=True)
def render_3d(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Rounded, lit bodies with a highlight and a soft cast shadow on a shaded studio ground."""
    base = oklch(0.38 + 0.52 * p.ground, 0.075, p.hue)
    lx, ly = direction(p.light)
    height, width = canvas.alpha.shape
    across, down = (np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    ramp = lx * across[None] + ly * down[:, None]
    ground = canvas.ground(base) * (1 + 0.22 * ramp[..., None])
    shadow = blur(shift(canvas.alpha, -lx * 9, -ly * 9), 5)
    ground = ground * (1 - 0.6 * shadow[..., None])
    depth = np.minimum(inside(canvas.alpha), 14)
    relief = blur(np.sqrt(np.maximum(28 * depth - depth * depth, 0)), 3)
    lit = shade(relief * 0.16, p.light)
    art = canvas.color() * (0.9 + 0.75 * lit[..., None]) + 0.55 * smoothstep(0.3, 0.8, lit)[..., None]
    return mix(ground, np.clip(art, 0, 1), canvas.alpha)


@style("comic", "hue ground stroke texture", colors=True)
def comic(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Saturated flat colour in a black outline over a ground of printed dots."""
    base = oklch(0.5 + 0.42 * p.ground, 0.14, p.hue)
    screen = smoothstep(0.62, 0.72, dots(canvas.alpha.shape, 8 + 16 * p.texture))
    ground = mix(canvas.ground(base), canvas.ground(base * 0.62), screen)
    art = vivid(posterize(canvas.color(), 4), 1.35)
    width = 2.0 + 6 * p.stroke
    ink = np.clip(width * 0.75 + 0.5 - outside(canvas.alpha), 0, 1)
    lines = edges(mix(ground * 0 + 1, art, canvas.alpha), canvas.alpha, 1 + 0.2 * width)
    picture = mix(mix(ground, ground * 0 + 0.04, ink), art, canvas.alpha)
    return mix(picture, picture * 0 + 0.04, lines * np.maximum(ink, canvas.alpha))


@style("sticker", "hue ground stroke light", colors=True)
def sticker(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """A die-cut white rim and a drop shadow on a plain surface."""
    ground = canvas.ground(oklch(0.32 + 0.5 * p.ground, 0.12, p.hue))
    away = outside(canvas.alpha)
    rim = np.clip(3.5 + 9 * p.stroke + 0.5 - away, 0, 1)
    lx, ly = direction(p.light)
    shadow = blur(shift(rim, -lx * 7, -ly * 7), 2.5)
    picture = mix(ground * (1 - 0.62 * shadow[..., None]), ground * 0 + 0.98, rim)
    art = np.clip(vivid(canvas.color(), 1.15) * 1.05, 0, 1)
    return mix(picture, art, canvas.alpha)


@style("pixel art", "hue ground texture", colors=True)
def pixel_art(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Square blocks in few colours with a dark one-block outline on a checkered ground."""
    height, width = canvas.alpha.shape
    block = 4 + 5.5 * p.texture
    rows, columns = round(height / block), round(width / block)
    small = cv2.resize(canvas.art, (columns, rows), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(canvas.alpha, (columns, rows), interpolation=cv2.INTER_AREA)
    art = small / np.maximum(alpha, 1e-3)[..., None]
    base = oklch(0.3 + 0.6 * p.ground, 0.11, p.hue)
    checker = ((np.add.outer(np.arange(rows), np.arange(columns)) % 2) * 0.16 + 0.92).astype(np.float32)
    ground = cv2.resize(canvas.ground(base), (columns, rows), interpolation=cv2.INTER_AREA) * checker[..., None]
    solid = (alpha > 0.45).astype(np.float32)
    outline = cv2.dilate(solid, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) - solid
    levels = np.round(np.clip(vivid(art, 1.2), 0, 1) * 4) / 4
    picture = mix(mix(ground, ground * 0.25, outline), levels, solid)
    return cv2.resize(picture.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)


@style("watercolor", "hue ground texture", colors=True)
def watercolor(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Wobbly washes with darker rims that bleed into tinted paper."""
    shape = canvas.alpha.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    wave = 0.9 + 0.9 * p.texture
    warp_x, warp_y = x + wave * noise(shape, 3, rng), y + wave * noise(shape, 3, rng)
    art = cv2.remap(canvas.art, warp_x, warp_y, cv2.INTER_LINEAR)
    alpha = cv2.remap(canvas.alpha, warp_x, warp_y, cv2.INTER_LINEAR)
    paper = canvas.ground(oklch(0.72 + 0.25 * p.ground, 0.045, p.hue), scenery=0.45)
    octave = 3 if p.texture < 0.4 else 4 if p.texture < 0.75 else 5
    blotch = noise(shape, octave, rng)
    wash = smoothstep(0.05, 0.75, blur(alpha, 9) + 0.10 * blotch)
    paper = paper * mix(np.ones(3, np.float32), oklch(0.78, 0.13, p.hue), 0.85 * wash)
    color = vivid(blur(art, 0.8) / np.maximum(blur(alpha, 0.8), 1e-2)[..., None], 1.25)
    color = mix(color, oklch(0.62, 0.13, p.hue), 0.18) * 0.86 + 0.14
    rim = np.clip(alpha - blur(alpha, 3), 0, 1)
    density = 0.95 + 0.26 * blotch + 2.0 * rim
    pigment = np.clip(color, 0.02, 1) ** np.clip(density, 0.3, 2.2)[..., None]
    return mix(paper, paper * 0.12 + pigment * 0.88, 0.94 * alpha)


@style("pop art", "hue ground texture", colors=False)
def pop_art(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Three clashing inks by tone, the middle one printed in dots, on a loud ground."""
    ground = canvas.ground(oklch(0.5 + 0.38 * p.ground, 0.2, p.hue), scenery=0.4)
    tone = luma(cv2.medianBlur((canvas.color().clip(0, 1) * 255).astype(np.uint8), 5).astype(np.float32) / 255)
    dark, middle = oklch(0.25, 0.12, p.hue + 0.55), oklch(0.64, 0.24, p.hue + 0.42)
    bright = oklch(0.95, 0.1, p.hue + 0.3)
    screen = dots(canvas.alpha.shape, 7 + 13 * p.texture)
    art = mix(np.broadcast_to(bright, canvas.art.shape), middle, smoothstep(0.47, 0.55, screen * 0.75 + (0.62 - tone)))
    art = mix(art, dark, 1 - smoothstep(0.34, 0.40, tone))
    rim = np.clip(2.6 - outside(canvas.alpha), 0, 1)
    return mix(mix(ground, np.broadcast_to(dark, ground.shape), rim), art, canvas.alpha)


@style("paper cutout", "hue ground texture light", colors=True)
def paper_cutout(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Stacked sheets: rings that step down towards the subject, each with its own shadow."""
    away = outside(canvas.alpha) + 1.5 * noise(canvas.alpha.shape, 5, rng)
    lx, ly = direction(p.light)
    spacing = 6 + 10 * p.texture
    picture = canvas.ground(oklch(0.28 + 0.3 * p.ground, 0.10, p.hue), scenery=0.4)
    for step in (1, 2, 3):
        sheet = np.clip(away - step * spacing + 0.5, 0, 1)
        shadow = blur(shift(sheet, -lx * 3.5, -ly * 3.5), 1.5)
        paper = canvas.ground(oklch(0.34 + 0.07 * step + (0.22 + 0.03 * step) * p.ground, 0.10, p.hue), scenery=0.4)
        picture = mix(picture * (1 - 0.5 * shadow[..., None]), paper, sheet)
    shadow = blur(shift(canvas.alpha, -lx * 5, -ly * 5), 2)
    art = mix(posterize(canvas.color(), 4), np.ones(3, np.float32), 0.12)
    return mix(picture * (1 - 0.55 * shadow[..., None]), art, canvas.alpha)
