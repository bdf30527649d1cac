"""Pre-rendered pictures: uint8 memory maps of pictures and of what is where, and one caption list, per aspect ratio."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctrl.embedded import artwork
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.latents import PatchCode, pixels
from attnctrl.embedded.model import Tokens
from attnctrl.embedded.scenes import RELATIONS, SHAPES, SUBJECT_NAMES, WHOLE, Picture, Scene, World, render, sample

Shape = tuple[int, int]
TOKEN = 8
"""Pixels to an image token's side."""


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
    pictures, maps = (np.load(_file(folder, shape, kind), mmap_mode="r+") for kind in ("pictures", "maps"))
    art = artwork.load(cache)
    for row, index in enumerate(indices, start):
        drawn = scene(seed, index, world)
        picture = render(drawn, art)
        pictures[row], maps[row] = picture.image, content(drawn, picture)
    pictures.flush()
    maps.flush()


def content(drawn: Scene, picture: Picture) -> np.ndarray:
    """What stands under each image token, uint8 [2, H/8, W/8]: 1 + the subject's number, 1 + the color's; 0 is none."""
    count, height, width = picture.masks.shape
    filled = picture.masks.reshape(count, height // TOKEN, TOKEN, width // TOKEN, TOKEN).mean((2, 4))
    subjects = np.array([1 + SUBJECT_NAMES.index(thing.subject) for thing in drawn.objects])
    colors = np.array([1 + list(COLORS).index(thing.color) if thing.color else 0 for thing in drawn.objects])
    largest = filled.argmax(0)
    found: np.ndarray = (np.stack([subjects[largest], colors[largest]]) * (filled.max(0) > 0.3)).astype(np.uint8)
    return found


def _file(folder: Path, shape: Shape, kind: str = "pictures") -> Path:
    return folder / f"{kind}-{shape[0]}x{shape[1]}.npy"


def build(folder: Path, cache: Path, count: int, seed: int = 0, processes: int = 2, world: World = WHOLE) -> None:
    """Render `count` seeded scenes into `folder`: pictures-WxH.npy uint8 [n, H, W, 3], maps-WxH.npy, captions.json."""
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
        tokens = (len(indices), 2, shape[1] // TOKEN, shape[0] // TOKEN)
        for kind, form in (("pictures", size), ("maps", tokens)):
            np.lib.format.open_memmap(_file(folder, shape, kind), mode="w+", dtype=np.uint8, shape=form).flush()
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


def maps(folder: Path) -> list[np.ndarray]:
    """What is where (`content`), a read-only memory map per aspect ratio in the order of `load`."""
    return [np.load(_file(folder, shape, "maps"), mmap_mode="r") for shape in SHAPES]


class Batch(NamedTuple):
    """Latents [n, 16, h, w], CLIP and T5 ids [n, 24], where the first token stands, what is where [n, 2, h/2, w/2]."""

    latents: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    origin: tuple[int, int]
    maps: Tensor


class Batches:
    """Random batches of a rendered folder, each of one aspect ratio; batch `step` is the same on every machine.

    In half of them the first token stands somewhere up to twice the grid further down and right. `pairs` is the share
    of captions with a relation; None leaves it as drawn.
    """

    def __init__(
        self, folder: Path, tokens: Tokens, code: PatchCode, batch: int, seed: int, pairs: float | None = None
    ) -> None:
        self.code, self.batch, self.seed, self.pairs = code, batch, seed, pairs
        parts = zip(load(folder).values(), maps(folder), strict=True)
        self.parts = [(pictures, *tokens.encode(captions), content) for (pictures, captions), content in parts]
        said = [captions for _, captions in load(folder).values()]
        self.related = [np.array([any(f" {word} " in text for word in RELATIONS) for text in texts]) for texts in said]
        sizes = np.array([len(part[0]) for part in self.parts], float)
        self.shares = sizes / sizes.sum()

    def __getitem__(self, step: int) -> Batch:
        """Batch number `step`."""
        rng = np.random.default_rng([self.seed, step])
        part = int(rng.choice(len(self.parts), p=self.shares))
        pictures, clip_ids, t5_ids, content = self.parts[part]
        rows = self._rows(rng, part)
        latents = self.code.encode(pixels(pictures[rows]))
        moved = rng.random() < 0.5
        top, left = (int(rng.integers(0, side + 1)) * moved for side in latents.shape[2:])
        return Batch(latents, clip_ids[rows], t5_ids[rows], (top, left), torch.from_numpy(np.array(content[rows])))

    def _rows(self, rng: np.random.Generator, part: int) -> np.ndarray:
        related = self.related[part]
        if self.pairs is None or related.all() or not related.any():
            return np.sort(rng.choice(len(related), self.batch, replace=len(related) < self.batch))
        count = int(rng.binomial(self.batch, self.pairs))
        kinds = [(np.flatnonzero(related), count), (np.flatnonzero(~related), self.batch - count)]
        return np.sort(np.concatenate([rng.choice(rows, n, replace=len(rows) < n) for rows, n in kinds]))
