"""The judges' artwork in warped and recoloured variants, so that few sets go further."""

from __future__ import annotations

import cv2
import numpy as np

from attnctrl.embedded.artwork import JUDGE_SETS
from attnctrl.embedded.canvas import Array, noise, oklch
from attnctrl.embedded.scenes import SUBJECT_NAMES


def variants(art: dict[str, Array], count: int, rng: np.random.Generator) -> tuple[dict[str, Array], tuple[str, ...]]:
    """`count` variants of every judge set, `SET.i/SUBJECT` -> RGBA, the first as drawn; and the variants' set names.

    Where a set lacks a subject, a variant of another set that has it takes its place.
    """
    varied = {}
    for name in JUDGE_SETS:
        for subject in SUBJECT_NAMES:
            having = [other for other in JUDGE_SETS if f"{other}/{subject}" in art]
            for i in range(count):
                own = name if name in having else str(rng.choice(having))
                picture = _painted(art[f"{own}/{subject}"], rng) if own == "monotone" else art[f"{own}/{subject}"]
                varied[f"{name}.{i}/{subject}"] = _warp(picture, rng) if i else picture
    return varied, tuple(f"{name}.{i}" for name in JUDGE_SETS for i in range(count))


def _painted(picture: Array, rng: np.random.Generator) -> Array:
    """A black glyph in any colour on a light one within its outline."""
    color, light = oklch(rng.uniform(0.25, 0.7), 0.15, rng.random()), oklch(0.93, 0.05, rng.random())
    line = picture[..., 3:].astype(np.float32) / 255
    outside = np.pad((line[..., 0] < 0.5).astype(np.uint8), 1, constant_values=1)
    cv2.floodFill(outside, None, (0, 0), 2)
    body = (outside[1:-1, 1:-1] != 2)[..., None]
    alpha = np.maximum(line, body)
    return np.dstack([255 * (color * line + light * (1 - line)), 255 * alpha]).astype(np.uint8)


def _warp(picture: Array, rng: np.random.Generator) -> Array:
    """A bent, stretched and recoloured copy of RGBA artwork."""
    side = picture.shape[0]
    y, x = np.mgrid[:side, :side].astype(np.float32)
    centre = side / 2
    stretch, shear = rng.uniform(0.8, 1.25, 2), rng.uniform(-0.15, 0.15)
    bend = rng.uniform(0, 3.5)
    from_x = centre + (x - centre) * stretch[0] + shear * (y - centre) + bend * noise((side, side), 5, rng)
    from_y = centre + (y - centre) * stretch[1] + bend * noise((side, side), 5, rng)
    warped = cv2.remap(picture, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_LINEAR)
    color = cv2.cvtColor(np.ascontiguousarray(warped[..., :3]), cv2.COLOR_RGB2HSV).astype(np.float32)
    color[..., 0] = (color[..., 0] + rng.normal(0, 10)) % 180
    color[..., 1] = np.clip(color[..., 1] * rng.uniform(0.6, 1.3), 0, 255)
    color[..., 2] = np.clip(color[..., 2] * rng.uniform(0.75, 1.2), 0, 255)
    return np.dstack([cv2.cvtColor(color.astype(np.uint8), cv2.COLOR_HSV2RGB), warped[..., 3]])


def roughen(images: Array, rng: np.random.Generator) -> Array:
    """What a generated picture may do that a true one does not, on uint8 [n, H, W, 3]: noise, blur, a little tone."""
    rough = np.empty_like(images)
    for i, image in enumerate(images):
        x = image.astype(np.float32) * (1 + 0.08 * rng.normal()) + 5 * rng.normal()
        x += max(0.0, rng.uniform(-0.6, 1)) * (cv2.blur(x, (3, 3)) - x)
        rough[i] = np.clip(x + rng.uniform(0, 12) * rng.standard_normal(x.shape), 0, 255)
    return rough
