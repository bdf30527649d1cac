"""Training and calibration of the subject judge on scenes of the judges' artwork."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from attnctrl.embedded.scenes import PAIRED, Scene, World, render, sample
from attnctrl.embedded.styles import STYLES
from attnctrl.embedded.subjects import (
    COLOR_NAMES,
    FINE,
    PAIR_SCALES,
    SUBJECTS,
    Seen,
    SubjectHead,
    SubjectJudge,
    all_found,
    box,
    in_order,
    overlap,
)

_SQUARE = (((64, 64), 1.0),)
_VARIANTS = 8


class Drawn(NamedTuple):
    """Pictures uint8 [n, 64, 64, 3], scenes and masks, what fills each cell [n, 17, h, w], colors or -1 [n, h, w]."""

    images: Array
    scenes: list[Scene]
    masks: list[Array]
    cells: Tensor
    colors: Tensor


def draw(world: World, art: dict[str, Array], count: int, rng: np.random.Generator, cell: int = CELL) -> Drawn:
    """Square pictures of a world; of single objects a tenth is of (subject, style) pairs that the models do not see."""
    images, scenes, masks = np.empty((count, 64, 64, 3), np.uint8), [], []
    side = 64 // cell
    cells = np.zeros((count, len(SUBJECTS) + 1, side, side), np.float32)
    colors = np.full((count, side, side), -1)
    for i in range(count):
        scene = sample(rng, world, held=bool(world.pairs < 1 and rng.random() < 0.1))
        picture = render(scene, art)
        for thing, mask in zip(scene.objects, picture.masks, strict=True):
            fill = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
            cells[i, SUBJECTS.index(thing.subject)] += fill
            if thing.color:
                colors[i][fill > 0.5] = COLOR_NAMES.index(thing.color)
        images[i] = picture.image
        scenes.append(scene)
        masks.append(picture.masks)
    cells[:, -1] = np.clip(1 - cells.sum(1), 0, 1)
    return Drawn(images, scenes, masks, torch.from_numpy(cells), torch.from_numpy(colors))


def fit(parts: Sequence[tuple[Tensor, Tensor, Tensor]], epochs: int = 8, batch: int = 64) -> SubjectHead:
    """A head for parts of feature maps [n, 396, h, w], what fills their cells, and their colors.

    It learns what fills each cell and how much each subject fills. A batch is of one part.
    """
    torch.manual_seed(0)
    head = SubjectHead()
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    total = sum(-(-len(x) // batch) for x, _, _ in parts)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * total)
    for _ in range(epochs):
        turns = [(part, rows) for part in parts for rows in torch.randperm(len(part[0])).split(batch)]
        for turn in torch.randperm(len(turns)).tolist():
            (x, cells, colors), rows = turns[turn]
            where, color = head(x[rows].float())
            logs, wanted = log_softmax(where, 1), cells[rows]
            placed = -(wanted * logs).sum(1).mean()
            filled, truly = logs[:, :-1].exp().sum((2, 3)), wanted[:, :-1].sum((2, 3))
            shares = (filled / filled.sum(1, keepdim=True)).clamp(min=1e-6).log()
            named = -(truly / truly.sum(1, keepdim=True).clamp(min=1e-6) * shares).sum(1).mean()
            loss = placed + 0.5 * named
            if (colors[rows] >= 0).any():
                loss = loss + 0.3 * cross_entropy(color, colors[rows], ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def true_scenes(art: dict[str, Array], count: int, seed: int) -> tuple[Drawn, Drawn]:
    """Pictures of the generator's artwork: of single objects, and half as many of pairs."""
    rng, world = np.random.default_rng(seed), replace(PAIRED, shapes=_SQUARE)
    return (
        draw(replace(world, pairs=0.0), art, count, rng),
        draw(replace(world, pairs=1.0), art, count // 2, rng),
    )


def calibrate(judge: SubjectJudge, single: Drawn, double: Drawn) -> dict[str, Any]:
    """Shares of true renders that the judge reads rightly, and what it takes for what."""
    result = _of_one(judge(single.images), single.scenes)
    result["right"] |= _of_two(judge(double.images, PAIR_SCALES, FINE), double)
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


def _of_two(seen: Seen, drawn: Drawn) -> dict[str, list[Any]]:
    """`mask` and `box` are mean intersections over unions with the truth, of pairs of which both are found."""
    right: dict[str, list[Any]] = {
        name: [] for name in ("both of two found", "both found, in order", "each in its color", "count", "mask", "box")
    }
    rows = zip(drawn.scenes, drawn.masks, seen.found(), seen.counts(), strict=True)
    for i, (scene, masks, found, count) in enumerate(rows):
        names = [thing.subject for thing in scene.objects]
        right["count"].append(count == len(names))
        if len(set(names)) < 2:
            continue
        both = all_found(found, names)
        right["both of two found"].append(both)
        right["both found, in order"].append(in_order(found, names, str(scene.relation)))
        if all(thing.color for thing in scene.objects):
            told = {thing.subject: thing.color for thing in found}
            right["each in its color"].append(told == {thing.subject: thing.color for thing in scene.objects})
        for thing, mask in zip(scene.objects, masks, strict=True) if both else ():
            read, true = seen.mask(i, thing.subject), mask > 0.5
            right["mask"].append(float((read & true).sum() / max(1, (read | true).sum())))
            right["box"].append(overlap(box(read), box(true)))
    return right


def train(
    cache: Path, out: Path, count: int = 12_000, checked: int = 2000, threads: int = 1, seed: int = 6
) -> dict[str, Any]:
    """Fit the head on `count` scenes, calibrate it on `checked`, write safetensors (fp16) and JSON; the calibration."""
    torch.set_num_threads(threads)
    rng, plain = np.random.default_rng(seed), artwork.load(cache)
    art, sets = variants(plain, _VARIANTS, rng)
    world = replace(PAIRED, shapes=_SQUARE, artworks=sets, flips=0.3, tilt=12)
    worlds = {
        1: replace(world, pairs=0.15, size=(0.55, 0.9), stray=0.35, filled=(0.75, 1.0)),
        2: replace(world, pairs=1.0, filled=(0.75, 1.05)),
    }
    features, parts = FeatureMaps(), []
    for scale, shown in worlds.items():
        drawn = draw(shown, art, count // 2, rng, CELL // scale)
        images = roughen(drawn.images, rng)
        if scale > 1:
            size = (scale * 64, scale * 64)
            images = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in images])
        parts.append((features(images), drawn.cells, drawn.colors))
    head = fit(parts)
    calibration: dict[str, Any] = {"trained on": list(artwork.JUDGE_SETS), "scenes": count}
    calibration |= calibrate(SubjectJudge(head, {}), *true_scenes(plain, checked, seed + 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value for name, value in head.state_dict().items() if value.is_floating_point()}
    save_file({name: value.half().contiguous() for name, value in state.items()}, out)
    out.chmod(0o644)
    out.with_suffix(".json").write_text(json.dumps(calibration, indent=1) + "\n")
    return calibration
