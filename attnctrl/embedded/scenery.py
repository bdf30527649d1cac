"""Five simple backdrops that a caption can name."""

from __future__ import annotations

import numpy as np

from attnctrl.embedded.canvas import Array, grid, mix, noise, smoothstep

# name -> how a caption writes it after "on"
BACKGROUNDS = {
    "meadow": "a meadow",
    "beach": "a beach",
    "snow": "snow",
    "night sky": "a night sky",
    "desert": "a desert",
}
# name -> colours of the sky's top, the sky's foot, the land's far and near edge
_COLORS = {
    "meadow": ((0.42, 0.70, 0.95), (0.80, 0.93, 1.0), (0.50, 0.78, 0.30), (0.24, 0.58, 0.20)),
    "beach": ((0.45, 0.78, 0.95), (0.75, 0.92, 0.98), (0.98, 0.90, 0.66), (0.93, 0.80, 0.52)),
    "snow": ((0.62, 0.74, 0.88), (0.84, 0.90, 0.96), (0.97, 0.98, 1.0), (0.86, 0.91, 0.98)),
    "night sky": ((0.03, 0.04, 0.16), (0.12, 0.12, 0.36), (0.16, 0.15, 0.40), (0.24, 0.18, 0.46)),
    "desert": ((0.98, 0.74, 0.46), (1.0, 0.90, 0.68), (0.90, 0.62, 0.30), (0.76, 0.44, 0.20)),
}


def scenery(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A backdrop with a random horizon, float [H, W, 3]."""
    height, width = shape[:2]
    y, x = grid(shape)
    top, foot, far, near = (np.array(color, np.float32) for color in _COLORS[name])
    horizon = height * rng.uniform(0.45, 0.7)
    picture = mix(np.broadcast_to(top, (height, width, 3)), foot, np.clip(y / horizon, 0, 1))
    if name == "night sky":
        stars = rng.random((max(2, height // 14), max(2, width // 14), 4))
        for row in range(stars.shape[0]):
            for column in range(stars.shape[1]):
                dy, dx, size, shown = stars[row, column]
                if shown < 0.6:
                    distance = np.hypot(y - (row + dy) * 14, x - (column + dx) * 14)
                    picture = mix(picture, np.ones(3, np.float32), np.clip(1.0 + 1.3 * size - distance, 0, 1))
        return picture
    bend = 0.05 * height if name in ("meadow", "snow") else 0.08 * height if name == "desert" else 0.0
    edge = horizon + bend * np.sin(2 * np.pi * (x / (width * rng.uniform(0.7, 1.3)) + rng.random()))
    land = mix(np.broadcast_to(far, picture.shape), near, np.clip((y - edge) / (height - horizon), 0, 1))
    if name == "beach":
        sea = np.broadcast_to(np.array([0.10, 0.50, 0.72], np.float32), picture.shape)
        picture = mix(picture, sea, np.clip(y - horizon + 0.16 * height, 0, 1))
    if name == "meadow":
        land = land * (1 + 0.10 * smoothstep(0.5, 1.2, noise(shape, 3, rng))[..., None])
    return mix(picture, land, np.clip(y - edge + 0.5, 0, 1))
