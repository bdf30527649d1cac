"""Training and calibration of the judge on scenes of its own artwork, warped so that two sets go further."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnctrl.embedded import artwork as art_module
from attnctrl.embedded.canvas import StyleParams, noise
from attnctrl.embedded.judge import CIRCULAR, PARAMS, Judge, JudgeNet, declared, decode_params, encode_params
from attnctrl.embedded.scenes import STYLE_NAMES, SUBJECT_NAMES, Object, Scene, render

Array = np.ndarray
_VARIANTS = 10


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


def _artwork(cache: Path, rng: np.random.Generator) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The judge's artwork in several warped variants, and the variants' set names."""
    plain = art_module.load(cache)
    varied = {}
    for name in art_module.JUDGE_SETS:
        for subject in SUBJECT_NAMES:
            picture = plain[f"{name}/{subject}"]
            varied[f"{name}.0/{subject}"] = picture
            for i in range(1, _VARIANTS):
                varied[f"{name}.{i}/{subject}"] = _warp(picture, rng)
    return varied, tuple(f"{name}.{i}" for name in art_module.JUDGE_SETS for i in range(_VARIANTS))


def single(rng: np.random.Generator, sets: tuple[str, ...], subject: str, style: str) -> Scene:
    """One object on a square, anywhere and in any size, in a style with random parameters."""
    size = float(rng.uniform(30, 58))
    low, high = size / 2, 64 - size / 2
    thing = Object(
        subject=subject,
        color=None,
        artwork=str(rng.choice(sets)),
        flip=bool(rng.random() < 0.5),
        rotation=float(rng.uniform(-15, 15)),
        marking=float(rng.uniform(-1, 1)),
        center=(float(rng.uniform(low, high)), float(rng.uniform(low, high))),
        size=size,
    )
    behind = str(rng.choice(["meadow", "beach", "snow", "night sky", "desert"])) if rng.random() < 0.15 else None
    return Scene(64, 64, (thing,), None, behind, style, StyleParams.sample(rng), "", int(rng.integers(2**31)))


def draw(
    count: int, art: dict[str, Array], sets: tuple[str, ...], rng: np.random.Generator
) -> tuple[Array, Tensor, Tensor, Tensor]:
    """Pictures uint8 [n, 64, 64, 3], subject and style indices [n], parameters [n, 5]."""
    images, values = np.empty((count, 64, 64, 3), np.uint8), np.empty((count, len(PARAMS)), np.float32)
    subjects, styles = rng.integers(0, len(SUBJECT_NAMES), count), rng.integers(0, len(STYLE_NAMES), count)
    for i in range(count):
        scene = single(rng, sets, SUBJECT_NAMES[subjects[i]], STYLE_NAMES[styles[i]])
        images[i] = render(replace(scene, seed=int(rng.integers(2**31))), art).image
        values[i] = [getattr(scene.params, name) for name in PARAMS]
    return images, torch.from_numpy(subjects), torch.from_numpy(styles), torch.from_numpy(values)


def calibrate(net: JudgeNet, cache: Path, count: int = 2800, seed: int = 7) -> dict[str, Any]:
    """Accuracy and parameter errors on true renders of the generator's artwork, which the judge never saw."""
    images, subjects, styles, values = draw(
        count, art_module.load(cache), art_module.GENERATOR_SETS, np.random.default_rng(seed)
    )
    net.eval()
    with torch.no_grad():
        x = torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
        parts = [net(chunk) for chunk in x.split(200)]
    subject, style, outputs = (torch.cat([part[i] for part in parts]) for i in range(3))
    top = subject.topk(5, dim=1).indices
    read = decode_params(outputs[torch.arange(count), styles])
    shown = declared()[styles]
    result: dict[str, Any] = {
        "pictures": count,
        "subject_top1": float((top[:, 0] == subjects).float().mean()),
        "subject_top5": float((top == subjects[:, None]).any(1).float().mean()),
        "style_top1": float((style.argmax(1) == styles).float().mean()),
        "subject_top1_by_style": {},
        "style_confused_with": {},
        "mean_abs_error": {},
        "correlation": {},
    }
    for i, name in enumerate(STYLE_NAMES):
        rows = styles == i
        result["subject_top1_by_style"][name] = round(float((top[rows, 0] == subjects[rows]).float().mean()), 3)
        counts = torch.bincount(style[rows].argmax(1), minlength=len(STYLE_NAMES))
        others = {STYLE_NAMES[j]: int(n) for j, n in enumerate(counts) if n and j != i}
        result["style_confused_with"][name] = others
    for i, name in enumerate(PARAMS):
        rows = shown[:, i]
        gap = (read[rows, i] - values[rows, i]).abs()
        if name in CIRCULAR:
            gap = torch.minimum(gap, 1 - gap)
            agreement = (2 * torch.pi * gap).cos().mean()
        else:
            agreement = torch.corrcoef(torch.stack([read[rows, i], values[rows, i]]))[0, 1]
        result["mean_abs_error"][name] = round(float(gap.mean()), 4)
        result["correlation"][name] = round(float(agreement), 4)
    return result


def _augment(x: Tensor) -> Tensor:
    """What a generated picture may do that a true one does not: noise, blur, a little tone."""
    x = x * (1 + 0.08 * torch.randn(len(x), 1, 1, 1)) + 0.04 * torch.randn(len(x), 1, 1, 1)
    soft = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, (torch.rand(len(x), 1, 1, 1) * 1.6 - 0.6).clamp(0, 1))
    return x + 0.12 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


def train(
    cache: Path,
    out: Path,
    minutes: float = 10,
    pictures: int = 24_000,
    batch: int = 64,
    threads: int = 1,
    seed: int = 3,
) -> dict[str, Any]:
    """Draw the pictures, train for so many minutes, calibrate, write safetensors (fp16) and JSON; the calibration."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, subjects, styles, values = draw(pictures, *_artwork(cache, rng), rng)
    wanted, weights = encode_params(values), declared()[styles].float()[:, [0, 0, 1, 2, 3, 4, 4]]
    scale = torch.tensor([1.0, 1.0, 8.0, 8.0, 8.0, 1.0, 1.0])
    net = JudgeNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
    begin, done, step = time.perf_counter(), 0.0, 0
    while done < 1:
        done = min(1.0, (time.perf_counter() - begin) / (60 * minutes))
        rows = torch.from_numpy(rng.choice(pictures, batch, replace=False))
        x = _augment(torch.from_numpy(images[rows.numpy()]).movedim(-1, 1).float() / 127.5 - 1)
        subject, style, outputs = net(x)
        read = outputs[torch.arange(batch), styles[rows]]
        gaps = (scale * weights[rows] * (read - wanted[rows]).square()).sum(1).mean()
        loss = cross_entropy(subject, subjects[rows], label_smoothing=0.05) + 0.5 * gaps
        loss = loss + 0.5 * cross_entropy(style, styles[rows])
        loss.backward()
        warm = min(1.0, (step + 1) / 200)
        optimizer.param_groups[0]["lr"] = 3e-3 * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    calibration = {"steps": step, **calibrate(net, cache)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, out)
    out.chmod(0o644)
    out.with_suffix(".json").write_text(json.dumps(calibration, indent=1) + "\n")
    Judge.load(out)
    return calibration
