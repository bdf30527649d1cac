"""Contact sheets: grids of pictures as one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from attnctrl.embedded.canvas import StyleParams
from attnctrl.embedded.scenes import STYLE_NAMES, Object, Scene, render


def save_grid(
    path: Path, images: list[np.ndarray], columns: int, labels: list[str] | None = None, scale: int = 2
) -> Path:
    """Write uint8 pictures [H, W, 3] of any sizes into cells of the largest, row by row, with labels above them."""
    height, width = (max(image.shape[axis] for image in images) * scale for axis in (0, 1))
    band = 12 if labels else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (height + band + 4) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = 4 + (i % columns) * (width + 4), 4 + (i // columns) * (height + band + 4)
        tile = Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y + band))
        if labels:
            draw.text((x, y), labels[i][: width // 6], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return path


def world(path: Path, artwork: dict[str, np.ndarray], subjects: tuple[str, ...], seed: int = 0) -> Path:
    """True pictures, a row a style and a column a subject: what captions leave open differs from cell to cell."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for name in STYLE_NAMES:
        for subject in subjects:
            thing = Object(
                subject=subject,
                color=None,
                artwork=str(rng.choice(["flat", "fluent3d", "noto", "twemoji"])),
                flip=bool(rng.random() < 0.5),
                rotation=float(rng.uniform(-12, 12)),
                marking=float(rng.uniform(-1, 1)),
                center=(32.0, 32.0),
                size=float(rng.uniform(46, 56)),
            )
            params = StyleParams.sample(rng)
            scene = Scene(64, 64, (thing,), None, None, name, params, "", int(rng.integers(2**31)))
            images.append(render(scene, artwork).image)
            labels.append(name if subject == subjects[0] else "")
    return save_grid(path, images, len(subjects), labels)
