"""Pre-rendered pictures: one uint8 memory map and one caption list per aspect ratio."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from attnctrl.embedded import artwork
from attnctrl.embedded.latents import PatchCode, pixels
from attnctrl.embedded.model import Tokens
from attnctrl.embedded.scenes import SHAPES, WHOLE, Scene, World, render, sample

Shape = tuple[int, int]


def scene(seed: int, index: int, world: World = WHOLE) -> Scene:
    """Scene `index` of the data set `seed`: the same on every machine."""
    return sample(np.random.default_rng([seed, index]), world)


def held_pictures(cache: Path, count: int, seed: int = 1) -> np.ndarray:
    """Square pictures of a seed that training never draws from, uint8 [count, 64, 64, 3]."""
    art, index = artwork.load(cache), 0
    pictures: list[np.ndarray] = []
    while len(pictures) < count:
        drawn = scene(seed, index)
        index += 1
        if (drawn.width, drawn.height) == (64, 64):
            pictures.append(render(drawn, art).image)
    return np.stack(pictures)


def photographs(folder: Path, each: int, seed: int = 1) -> np.ndarray:
    """Random squares of the photographs in a folder, brought to 64 px: uint8 [n, 64, 64, 3], `each` of every one."""
    rng, pictures = np.random.default_rng(seed), []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg")):
        photograph = Image.open(path).convert("RGB")
        for _ in range(each):
            side = int(rng.integers(64, min(photograph.size)))
            x, y = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
            pictures.append(
                np.asarray(photograph.resize((64, 64), Image.Resampling.LANCZOS, (x, y, x + side, y + side)))
            )
    return np.stack(pictures)


def _fill(job: tuple[Path, Path, int, World, Shape, list[int], int]) -> None:
    folder, cache, seed, world, shape, indices, start = job
    pictures = np.load(_file(folder, shape), mmap_mode="r+")
    art = artwork.load(cache)
    for row, index in enumerate(indices, start):
        pictures[row] = render(scene(seed, index, world), art).image
    pictures.flush()


def _file(folder: Path, shape: Shape) -> Path:
    return folder / f"pictures-{shape[0]}x{shape[1]}.npy"


def build(folder: Path, cache: Path, count: int, seed: int = 0, processes: int = 2, world: World = WHOLE) -> None:
    """Render `count` seeded scenes into `folder`: pictures-WxH.npy uint8 [n, H, W, 3] and captions.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[Shape, list[int]] = {shape: [] for shape in SHAPES}
    captions: dict[str, list[str]] = {f"{width}x{height}": [] for width, height in SHAPES}
    for index in range(count):
        drawn = scene(seed, index, world)
        rows[drawn.width, drawn.height].append(index)
        captions[f"{drawn.width}x{drawn.height}"].append(drawn.caption)
    jobs = []
    for shape, indices in rows.items():
        size = (len(indices), shape[1], shape[0], 3)
        np.lib.format.open_memmap(_file(folder, shape), mode="w+", dtype=np.uint8, shape=size).flush()
        jobs += [
            (folder, cache, seed, world, shape, indices[start : start + 1000], start)
            for start in range(0, len(indices), 1000)
        ]
    with multiprocessing.Pool(processes) as pool:
        pool.map(_fill, jobs, chunksize=1)
    (folder / "captions.json").write_text(json.dumps(captions))


def load(folder: Path) -> dict[Shape, tuple[np.ndarray, list[str]]]:
    """(width, height) -> pictures as a read-only memory map, captions."""
    captions = json.loads((folder / "captions.json").read_text())
    return {shape: (np.load(_file(folder, shape), mmap_mode="r"), captions["{}x{}".format(*shape)]) for shape in SHAPES}


class Batches:
    """Random batches of a rendered folder, each of one aspect ratio; batch `step` is the same on every machine."""

    def __init__(self, folder: Path, tokens: Tokens, code: PatchCode, batch: int, seed: int) -> None:
        self.code, self.batch, self.seed = code, batch, seed
        self.parts = [(pictures, *tokens.encode(captions)) for pictures, captions in load(folder).values()]
        sizes = np.array([len(part[0]) for part in self.parts], float)
        self.shares = sizes / sizes.sum()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Latents [n, 16, h, w], CLIP and T5 ids, where the first token stands (moved in a quarter of the batches)."""
        rng = np.random.default_rng([self.seed, step])
        pictures, clip_ids, t5_ids = self.parts[rng.choice(len(self.parts), p=self.shares)]
        rows = np.sort(rng.choice(len(pictures), self.batch, replace=len(pictures) < self.batch))
        latents = self.code.encode(pixels(pictures[rows]))
        moved = rng.random() < 0.25
        top, left = (int(rng.integers(0, side + 1)) * moved for side in latents.shape[2:])
        return latents, clip_ids[rows], t5_ids[rows], (top, left)
