"""Training and calibration of the subject judge on scenes of the judges' artwork."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from attnctrl.embedded import artwork
from attnctrl.embedded.canvas import Array
from attnctrl.embedded.features import CELL, FeatureMaps
from attnctrl.embedded.judge_artwork import roughen, variants
from attnctrl.embedded.scenes import WIDER, Scene, World, render, sample
from attnctrl.embedded.styles import STYLES
from attnctrl.embedded.subjects import (
    COLOR_NAMES,
    PAIR_SCALES,
    SUBJECTS,
    Seen,
    SubjectHead,
    SubjectJudge,
    both_found,
    in_order,
)

_SQUARE = (((64, 64), 1.0),)
_VARIANTS = 8


def draw(
    world: World, art: dict[str, Array], count: int, rng: np.random.Generator
) -> tuple[Array, list[Scene], Tensor, Tensor]:
    """Pictures uint8 [n, 64, 64, 3], their scenes, what fills each cell [n, 17, 8, 8], colors or -1 [n, 8, 8].

    A tenth is of (subject, style) pairs that the models do not see in training.
    """
    images, scenes = np.empty((count, 64, 64, 3), np.uint8), []
    side = 64 // CELL
    cells = np.zeros((count, len(SUBJECTS) + 1, side, side), np.float32)
    colors = np.full((count, side, side), -1)
    for i in range(count):
        scene = sample(rng, world, held=bool(rng.random() < 0.1))
        picture = render(scene, art)
        for thing, mask in zip(scene.objects, picture.masks, strict=True):
            fill = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
            cells[i, SUBJECTS.index(thing.subject)] += fill
            if thing.color:
                colors[i][fill > 0.5] = COLOR_NAMES.index(thing.color)
        images[i] = picture.image
        scenes.append(scene)
    cells[:, -1] = np.clip(1 - cells.sum(1), 0, 1)
    return images, scenes, torch.from_numpy(cells), torch.from_numpy(colors)


def fit(x: Tensor, cells: Tensor, colors: Tensor, epochs: int = 8, batch: int = 64) -> SubjectHead:
    """A head for feature maps x [n, 396, h, w]; it learns what fills each cell and how much each subject fills."""
    torch.manual_seed(0)
    head = SubjectHead()
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * -(-len(x) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            where, color = head(x[rows].float())
            logs, wanted = log_softmax(where, 1), cells[rows]
            placed = -(wanted * logs).sum(1).mean()
            filled, truly = logs[:, :-1].exp().sum((2, 3)), wanted[:, :-1].sum((2, 3))
            shares = (filled / filled.sum(1, keepdim=True)).clamp(min=1e-6).log()
            named = -(truly / truly.sum(1, keepdim=True) * shares).sum(1).mean()
            loss = placed + 0.5 * named
            if (colors[rows] >= 0).any():
                loss = loss + 0.3 * cross_entropy(color, colors[rows], ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def true_scenes(art: dict[str, Array], count: int, seed: int) -> tuple[Array, list[Scene]]:
    """Pictures of the generator's artwork and their scenes, three in ten of two objects."""
    return draw(replace(WIDER, shapes=_SQUARE, pairs=0.3), art, count, np.random.default_rng(seed))[:2]


def calibrate(judge: SubjectJudge, images: Array, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Shares of true renders that the judge reads rightly, and what it takes for what."""
    single, double = (np.array([bool(scene.relation) == two for scene in scenes]) for two in (False, True))
    groups = [[scene for scene, chosen in zip(scenes, rows, strict=True) if chosen] for rows in (single, double)]
    result = _of_one(judge(images[single]), groups[0])
    result["right"] |= _of_two(judge(images[double], PAIR_SCALES), groups[1]) if double.any() else {}
    result["right"] = {name: [round(float(np.mean(v)), 4), len(v)] for name, v in result["right"].items()}
    return result


def _of_one(seen: Seen, scenes: Sequence[Scene]) -> dict[str, dict[str, Any]]:
    confused: dict[str, Counter[str]] = {name: Counter() for name in SUBJECTS}
    colors: dict[str, Counter[str]] = {name: Counter() for name in COLOR_NAMES}
    right: dict[str, list[bool]] = {}
    tinted = seen.color_of([scene.objects[0].subject for scene in scenes])
    for scene, named, color in zip(scenes, seen.subjects(), tinted, strict=True):
        thing = scene.objects[0]
        confused[thing.subject][named] += 1
        named_styles = ["subject, named styles"] if STYLES[scene.style].named else []
        for group in ("subject", f"subject, {scene.style}", *named_styles):
            right.setdefault(group, []).append(named == thing.subject)
        if thing.color:
            colors[thing.color][color] += 1
            right.setdefault("color", []).append(color == thing.color)
    return {"right": right, "subject_taken_for": confused, "color_taken_for": colors}


def _of_two(seen: Seen, scenes: Sequence[Scene]) -> dict[str, list[bool]]:
    right: dict[str, list[bool]] = {"both of two found": [], "both found, in order": []}
    for scene, found in zip(scenes, seen.found(), strict=True):
        first, second = (thing.subject for thing in scene.objects)
        if first != second:
            right["both of two found"].append(both_found(found, first, second))
            right["both found, in order"].append(in_order(found, first, second, str(scene.relation)))
    return right


def train(
    cache: Path, out: Path, count: int = 12_000, checked: int = 3000, threads: int = 1, seed: int = 6
) -> dict[str, Any]:
    """Fit the head on `count` scenes, calibrate it on `checked`, write safetensors (fp16) and JSON; the calibration."""
    torch.set_num_threads(threads)
    rng, plain = np.random.default_rng(seed), artwork.load(cache)
    art, sets = variants(plain, _VARIANTS, rng)
    world = replace(WIDER, shapes=_SQUARE, artworks=sets, pairs=0.35, flips=0.3, size=(0.55, 0.9), stray=0.35, tilt=12)
    images, _, cells, colors = draw(world, art, count, rng)
    head = fit(FeatureMaps()(roughen(images, rng)), cells, colors)
    calibration: dict[str, Any] = {"trained on": list(artwork.JUDGE_SETS), "scenes": count}
    calibration |= calibrate(SubjectJudge(head, {}), *true_scenes(plain, checked, seed + 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value for name, value in head.state_dict().items() if value.is_floating_point()}
    save_file({name: value.half().contiguous() for name, value in state.items()}, out)
    out.chmod(0o644)
    out.with_suffix(".json").write_text(json.dumps(calibration, indent=1) + "\n")
    return calibration
