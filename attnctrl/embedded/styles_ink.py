"""The drawn styles: lines, hatching, glow and relief."""

from __future__ import annotations

import numpy as np

from attnctrl.embedded.canvas import (
    Array,
    Canvas,
    StyleParams,
    blur,
    edges,
    grid,
    inside,
    luma,
    mix,
    noise,
    oklch,
    outside,
    shade,
    smoothstep,
    stripes,
)
from attnctrl.embedded.styles import style


@style("line art", "hue ground stroke", colors=False)
def line_art(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Tinted ink lines on tinted paper, nothing filled."""
    paper = canvas.ground(oklch(0.66 + 0.32 * p.ground, 0.05, p.hue), scenery=0.15)
    lines = edges(canvas.over(canvas.ground(np.ones(3, np.float32), 1.0)), canvas.alpha, 1.4 + 4.2 * p.stroke)
    filled = mix(paper, paper * 0.35 + 0.65, 0.75 * canvas.alpha)
    return mix(filled, np.broadcast_to(oklch(0.3, 0.13, p.hue), paper.shape), lines)


@style("pencil sketch", "hue ground stroke texture", colors=False)
def pencil_sketch(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Hatched tone and soft contours in one coloured pencil."""
    shape = canvas.alpha.shape
    paper = canvas.ground(oklch(0.74 + 0.24 * p.ground, 0.03, p.hue), scenery=0.0)
    tone = luma(canvas.over(canvas.ground(np.ones(3, np.float32), 1.0)))
    period = 5 + 8 * p.texture
    wobble = 0.8 * noise(shape, 4, rng)
    width = 0.15 + 0.75 * p.stroke
    dark = np.clip(1.0 - tone, 0, 1) * (0.4 + 0.6 * canvas.alpha) + 0.12 * canvas.alpha
    first = smoothstep(-0.3, 0.5, stripes(shape, period, 0.125, wobble) - 1.1 + 2.0 * dark * (0.55 + width))
    second = smoothstep(-0.3, 0.5, stripes(shape, period, -0.1, wobble) - 2.0 + 2.2 * dark * (0.55 + width))
    lines = edges(canvas.over(canvas.ground(np.ones(3, np.float32), 1.0)), canvas.alpha, 1.2 + 2.6 * p.stroke)
    graphite = np.maximum(np.maximum(0.62 * first, 0.75 * second), 0.8 * lines)
    return mix(paper, np.broadcast_to(oklch(0.36, 0.10, p.hue), paper.shape), graphite)


@style("neon sign", "hue ground stroke", colors=False)
def neon_sign(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """Glowing tubes of two hues on a dark wall."""
    wall = canvas.ground(oklch(0.12 + 0.26 * p.ground, 0.05, p.hue + 0.5), scenery=0.3 * 0.5)
    inner = edges(canvas.color() * canvas.alpha[..., None], canvas.alpha, 1.2) * canvas.alpha
    reach = np.abs(outside(canvas.alpha) - inside(canvas.alpha))
    width = 1.3 + 3.4 * p.stroke
    tube = np.clip(width - reach + 0.5, 0, 1)
    main, second = oklch(0.72, 0.25, p.hue), oklch(0.8, 0.2, p.hue + 0.22)
    glow = blur(tube, 4 + 3.5 * p.stroke)[..., None] * main * 1.5 + blur(inner, 4)[..., None] * second * 0.8
    core = np.clip(width * 0.45 - reach + 0.5, 0, 1)
    picture = np.clip(wall * (1 - 0.55 * canvas.alpha[..., None]) + glow, 0, 1)
    picture = mix(picture, np.broadcast_to(second, wall.shape), 0.85 * inner)
    picture = mix(picture, np.broadcast_to(main, wall.shape), tube)
    return mix(picture, np.ones(3, np.float32), 0.8 * core)


@style("blueprint", "ground stroke texture", colors=False)
def blueprint(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """White lines on blue squared paper; `texture` is the pitch of the grid."""
    shape = canvas.alpha.shape
    paper = canvas.ground(oklch(0.27 + 0.33 * p.ground, 0.13, 0.715), scenery=0.12)
    pitch = 10 + 20 * p.texture
    y, x = grid(shape)
    offset_y, offset_x = rng.random(2) * pitch
    rule = np.minimum(np.abs((y + offset_y) % pitch - 1.0), np.abs((x + offset_x) % pitch - 1.0))
    picture = mix(paper, np.ones(3, np.float32), 0.32 * np.clip(1.9 - rule, 0, 1) * (1 - 0.8 * canvas.alpha))
    lines = edges(canvas.over(canvas.ground(np.zeros(3, np.float32), 1.0)), canvas.alpha, 1.3 + 3.8 * p.stroke)
    return mix(picture, np.broadcast_to(np.array([0.93, 0.97, 1.0], np.float32), paper.shape), 0.95 * lines)


@style("gold emboss", "hue ground light", colors=False, named=False)
def gold_emboss(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """A gilded relief pressed into coloured leather."""
    leather = canvas.ground(oklch(0.2 + 0.4 * p.ground, 0.10, p.hue), scenery=0.3)
    depth = np.minimum(inside(canvas.alpha), 7)
    tone = luma(canvas.color()) * canvas.alpha
    relief = blur(depth * 0.55 + 3.2 * blur(tone, 1.0) * canvas.alpha, 1.0)
    lit = shade(relief * 0.5, p.light)
    stops = np.array([-0.9, -0.3, 0.1, 0.5, 0.9])
    ramp = np.array([[0.20, 0.09, 0.01], [0.50, 0.30, 0.05], [0.80, 0.58, 0.16], [0.98, 0.84, 0.42], [1.0, 0.98, 0.86]])
    gold = np.stack([np.interp(lit, stops, ramp[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)
    groove = np.clip(4.5 - outside(canvas.alpha), 0, 1) * (1 - canvas.alpha)
    dented = leather * (1 + 0.9 * shade(blur(-canvas.alpha, 2.5) * 5, p.light)[..., None] * 0.6)
    return mix(mix(dented, dented * 0.55, groove), gold, canvas.alpha)


@style("linocut", "hue ground stroke texture", colors=False, named=False)
def linocut(canvas: Canvas, p: StyleParams, rng: np.random.Generator) -> Array:
    """One dark ink on paper: solid darks, carved mid tones, and a ground cut in long wavy lines."""
    shape = canvas.alpha.shape
    paper = canvas.ground(oklch(0.76 + 0.21 * p.ground, 0.06, p.hue + 0.15), scenery=0.0)
    ink = oklch(0.3, 0.13, p.hue)
    tone = luma(canvas.over(canvas.ground(np.ones(3, np.float32), 1.0)))
    period = 7 + 11 * p.texture
    wobble = 2.2 * noise(shape, 5, rng)
    carve = stripes(shape, period, 0.125, wobble)
    inked = smoothstep(0.0, 0.25, carve * 0.2 + 0.42 - tone) * canvas.alpha
    lines = edges(canvas.over(np.ones(3, np.float32)), canvas.alpha, 1.2 + 2.5 * p.stroke) * canvas.alpha
    moat = np.clip(outside(canvas.alpha) - 1.5 - 4 * p.stroke, 0, 1) * (1 - canvas.alpha)
    cut = stripes(shape, 2 * period, 0.25, 2 * wobble) + (0.0 if canvas.scenery is None else 1.5) * (tone - 0.7)
    field = moat * (1 - 0.9 * smoothstep(0.80, 0.96, cut))
    mark = np.maximum(np.maximum(inked, lines), field)
    return mix(paper, np.broadcast_to(ink, paper.shape), mark)
