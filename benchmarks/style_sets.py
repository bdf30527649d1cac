"""Does sharing keep a style? Plain, naive, StyleAligned and AlignedGen on the same prompts and seeds, judged.

python benchmarks/style_sets.py --model tiny-sd3 --sets 21 --out docs/style-sets-sd3

Each set has one style and four subjects; the first picture leads. Per set and method:
  agreement  1 - mean distance of the targets' style parameters to the leader's, as the judge reads them in that style
  subject    share of targets whose subject the judge names as asked
  leakage    share of targets that the judge takes for the leader's subject
  style      share of targets whose style the judge names as asked
Intervals are 95% bootstrap intervals over sets, of the mean and of the paired difference to plain.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from study import Scores, report

from attnctrl import AlignedStyle, Control, NaiveSharing, StyleAligned, Where, load
from attnctrl.embedded import artwork
from attnctrl.embedded.judge import CIRCULAR, PARAMS, Judge
from attnctrl.embedded.scenes import FIRST, World, article, held_out, render, sample
from attnctrl.embedded.styles import STYLES
from attnctrl.embedded.subjects import SubjectJudge
from attnctrl.pipelines.sheets import SheetRow, contact_sheet
from attnctrl.processors.attaching import architecture_of

METHODS: dict[str, tuple[Control, ...]] = {
    "plain": (),
    "naive": (NaiveSharing(),),
    "stylealigned": (StyleAligned(),),
    "aligned, no ShiftPE": (AlignedStyle(shift=(0, 0)),),
    "aligned": (AlignedStyle(),),
    "aligned, strength 0.15": (AlignedStyle(strength=0.15),),
}
ADDITIVE: dict[str, tuple[Control, ...]] = {
    "aligned, reference moved": (AlignedStyle(additive="move"),),
    "aligned, every block": (AlignedStyle(where=Where(blocks="all")),),
    "moved, strength 0.15": (AlignedStyle(additive="move", strength=0.15),),
}
"""Further arms on models whose positions are additive: there "aligned" shifts a copy of the reference."""
METRICS = ("agreement", "subject", "leakage", "style")
SIZE, SHOWN = 4, 2


def draw_sets(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """The model's named styles in turn, each with four different subjects whose (subject, style) pair it was shown."""
    rng = np.random.default_rng(seed)
    named = [name for name in FIRST.styles if STYLES[name].named]
    sets = []
    for i in range(count):
        style = named[i % len(named)]
        known = [subject for subject in FIRST.subjects if not held_out(subject, style)]
        sets.append((style, [str(s) for s in rng.choice(known, SIZE, replace=False)]))
    return sets


def score(judge: Judge, named: list[str], images: np.ndarray, style: str, subjects: list[str]) -> dict[str, float]:
    """The metrics of one set; images uint8 [4, H, W, 3], the leader first, and the subjects that the judge names."""
    seen = judge(images, style=style)
    gaps = np.abs(seen["params"][1:] - seen["params"][:1])
    for i, name in enumerate(PARAMS):
        if name in CIRCULAR:
            gaps[:, i] = 2 * np.minimum(gaps[:, i], 1 - gaps[:, i])
    styles = seen["style"][1:].argmax(1)
    return {
        "agreement": float(1 - np.nanmean(gaps)),
        "subject": float(np.mean([a == b for a, b in zip(named[1:], subjects[1:], strict=True)])),
        "leakage": float(np.mean([a == subjects[0] for a in named[1:]])),
        "style": float(np.mean([judge.styles[i] == style for i in styles])),
    }


def draw(pipe: Any, sets: list[tuple[str, list[str]]], seed: int) -> dict[str, list[list[Image.Image]]]:
    """Pictures [method][set][4]: the same prompts and seeds for every method."""
    methods = METHODS if architecture_of(pipe).rotary else METHODS | ADDITIVE
    pictures: dict[str, list[list[Image.Image]]] = {name: [] for name in methods}
    for i, (style, subjects) in enumerate(sets):
        prompts = [f"{article(subject)}, {style}" for subject in subjects]
        for name, control in methods.items():
            generators = [torch.Generator().manual_seed(seed + SIZE * i + j) for j in range(SIZE)]
            pictures[name].append(pipe(prompts, control=control, generator=generators).images)
        print(f"set {i + 1} of {len(sets)}", flush=True)
    return pictures


def true_sets(sets: list[tuple[str, list[str]]], cache: Path, seed: int) -> dict[str, list[list[Image.Image]]]:
    """The same sets drawn by the world itself: the style's parameters drawn once a set, and once a picture."""
    art, rng = artwork.load(cache), np.random.default_rng(seed)
    rows: dict[str, list[list[Image.Image]]] = {"world, one draw a set": [], "world, one a picture": []}
    for style, subjects in sets:
        worlds = [World((subject,), (style,), FIRST.artworks, (((64, 64), 1.0),), 0.0, 0.0) for subject in subjects]
        scenes = [sample(rng, world) for world in worlds]
        rows["world, one a picture"].append([Image.fromarray(render(scene, art).image) for scene in scenes])
        scenes = [replace(scene, params=scenes[0].params) for scene in scenes]
        rows["world, one draw a set"].append([Image.fromarray(render(scene, art).image) for scene in scenes])
    return rows


def judged(sets: list[tuple[str, list[str]]], pictures: dict[str, list[list[Image.Image]]]) -> Scores:
    """Scores [method][metric], an array over sets."""
    judge, namer = Judge.load(), SubjectJudge.load()
    scores = {}
    for name, rows in pictures.items():
        arrays = np.stack([np.stack([np.asarray(p) for p in row]) for row in rows])
        named = namer(arrays.reshape(-1, *arrays.shape[2:])).subjects(FIRST.subjects)
        each = [
            score(judge, named[SIZE * i : SIZE * (i + 1)], images, style, subjects)
            for i, (images, (style, subjects)) in enumerate(zip(arrays, sets, strict=True))
        ]
        scores[name] = {metric: np.array([row[metric] for row in each]) for metric in METRICS}
    return scores


def sheet(sets: list[tuple[str, list[str]]], pictures: dict[str, list[list[Image.Image]]]) -> Image.Image:
    """A row a method: the first sets side by side."""
    rows = []
    for name, drawn in pictures.items():
        shown = [image for row in drawn[:SHOWN] for image in row]
        labels = [f"{subject}, {style}" for style, subjects in sets[:SHOWN] for subject in subjects]
        rows.append(SheetRow(name, shown, labels, frozenset(range(0, SIZE * SHOWN, SIZE))))
    return contact_sheet(rows)


def main() -> None:
    """Run the study; write OUT.json, OUT.png and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-flux")
    parser.add_argument("--sets", type=int, default=21)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--artwork", type=Path, help="the artwork cache, for the world's own sets beside")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    sets = draw_sets(options.sets, options.seed)
    pictures = draw(load(options.model, device="cpu"), sets, options.seed)
    sheet(sets, pictures).save(options.out.with_suffix(".png"))
    if options.artwork:
        pictures |= true_sets(sets, options.artwork, options.seed)
    scores = judged(sets, pictures)
    told = {"model": options.model, "sets": options.sets, "seed": options.seed}
    report(scores, told, options.out)


if __name__ == "__main__":
    main()
