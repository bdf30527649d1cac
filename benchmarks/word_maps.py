"""Do words find their objects? Maps of rendered scenes with known masks, noised half way: one step, every block.

`python benchmarks/word_maps.py tiny-sd3 --artwork PATH` (the cache of `attnctrl embedded artwork`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnctrl import Observation, Where, load, observe
from attnctrl.embedded import artwork, scenes

PIPELINES = {"tiny-sd3": "StableDiffusion3Img2ImgPipeline", "tiny-flux": "FluxImg2ImgPipeline"}


def coloured_pairs(count: int, seed: int = 11) -> list[scenes.Scene]:
    """Square scenes of two subjects whose captions name both and two different colours."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = scenes.sample(rng)
        names = [text for one in scene.objects for text in (one.subject, one.color)]
        whole = len(set(names)) == 4 and None not in names and all(name in scene.caption for name in names)
        if whole and (scene.width, scene.height) == (64, 64):
            found.append(scene)
    return found


def area_under_curve(values: np.ndarray, mask: np.ndarray) -> float:
    """The chance that a token of the mask is above one outside it."""
    inside, outside = values[mask][:, None], values[~mask][None]
    return float((inside > outside).mean() + 0.5 * (inside == outside).mean())


def by_block(found: Observation, word: str, measure: Any) -> list[float]:
    """A measure of a word's map in each block, and of their mean."""
    return [measure(found.map(word, block=block)) for block in (*found.numbers, None)]


def main() -> None:
    """Print, by block and for their mean: AUC of subjects over their masks; how often own is above other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=PIPELINES)
    parser.add_argument("--artwork", type=Path, default=None)
    parser.add_argument("--count", type=int, default=30)
    given = parser.parse_args()
    art, pipe = artwork.load(given.artwork), load(given.model, PIPELINES[given.model], device="cpu")
    areas, subjects, colours = [], [], []
    for i, scene in enumerate(coloured_pairs(given.count)):
        picture = scenes.render(scene, art)
        first, second = (mask.reshape(8, 8, 8, 8).mean((1, 3)) > 0.4 for mask in picture.masks)
        first, second = first & ~second, second & ~first
        if min(first.sum(), second.sum()) < 2:
            continue
        words = [str(text) for one in scene.objects for text in (one.subject, one.color)]
        found = observe(
            pipe, scene.caption, words, image=Image.fromarray(picture.image), strength=0.6, num_inference_steps=10,
            generator=torch.Generator().manual_seed(i), where=Where(steps="0"),
        )  # fmt: skip
        for n, word in enumerate(words):
            own, other = (first, second) if n < 2 else (second, first)
            won = by_block(found, word, lambda v, own=own, other=other: float(v[own].mean() > v[other].mean()))
            (colours if n % 2 else subjects).append(won)
            if n % 2 == 0:
                areas.append(by_block(found, word, lambda v, own=own: area_under_curve(v, own)))
    for name, rows in (("subject AUC", areas), ("subject above other", subjects), ("colour above other", colours)):
        print(f"{name} ({len(rows)}):", *np.mean(rows, 0).round(2))


if __name__ == "__main__":
    main()
