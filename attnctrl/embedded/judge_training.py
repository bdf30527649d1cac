"""Training and calibration of the style judge on scenes of the judges' artwork."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnctrl.embedded import artwork as art_module
from attnctrl.embedded.canvas import Array, StyleParams
from attnctrl.embedded.judge import CIRCULAR, PARAMS, JudgeNet, declared, decode_params, encode_params
from attnctrl.embedded.judge_artwork import roughen, variants
from attnctrl.embedded.latents import pixels
from attnctrl.embedded.scenes import STYLE_NAMES, SUBJECT_NAMES, WIDER, Object, Scene, render

_VARIANTS = 10


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
) -> tuple[Array, Tensor, Tensor]:
    """Pictures uint8 [n, 64, 64, 3], style indices [n], parameters [n, 5]."""
    images, values = np.empty((count, 64, 64, 3), np.uint8), np.empty((count, len(PARAMS)), np.float32)
    styles = rng.integers(0, len(STYLE_NAMES), count)
    for i in range(count):
        scene = single(rng, sets, str(rng.choice(SUBJECT_NAMES)), STYLE_NAMES[styles[i]])
        images[i] = render(scene, art).image
        values[i] = [getattr(scene.params, name) for name in PARAMS]
    return images, torch.from_numpy(styles), torch.from_numpy(values)


def calibrate(net: JudgeNet, cache: Path, count: int = 2800, seed: int = 7) -> dict[str, Any]:
    """Accuracy and parameter errors on true renders of the generator's artwork, which the judge never saw."""
    images, styles, values = draw(count, art_module.load(cache), art_module.GENERATOR_SETS, np.random.default_rng(seed))
    net.eval()
    with torch.no_grad():
        parts = [net(chunk) for chunk in pixels(images).split(200)]
    style, outputs = (torch.cat([part[i] for part in parts]) for i in range(2))
    read = decode_params(outputs[torch.arange(count), styles])
    known = torch.tensor([STYLE_NAMES.index(name) for name in WIDER.styles])
    rows = torch.isin(styles, known)
    among = known[style[rows][:, known].argmax(1)]
    result: dict[str, Any] = {
        "pictures": count,
        "style_top1": round(float((style.argmax(1) == styles).float().mean()), 4),
        f"style_top1_among_{len(known)}": round(float((among == styles[rows]).float().mean()), 4),
        "style_confused_with": {},
        "mean_abs_error": {},
        "correlation": {},
        "correlation_by_style": {name: {} for name in STYLE_NAMES},
    }
    for i, name in enumerate(STYLE_NAMES):
        counts = torch.bincount(style[styles == i].argmax(1), minlength=len(STYLE_NAMES))
        others = {STYLE_NAMES[j]: int(n) for j, n in enumerate(counts) if n and j != i}
        result["style_confused_with"][name] = others
    shown = declared()
    for i, name in enumerate(PARAMS):
        gap, agreement = _agreement(read[:, i], values[:, i], shown[styles, i], name in CIRCULAR)
        result["mean_abs_error"][name], result["correlation"][name] = round(gap, 4), round(agreement, 4)
        for j in torch.nonzero(shown[:, i])[:, 0].tolist():
            agreement = _agreement(read[:, i], values[:, i], styles == j, name in CIRCULAR)[1]
            result["correlation_by_style"][STYLE_NAMES[j]][name] = round(agreement, 3)
    return result


def _agreement(read: Tensor, true: Tensor, rows: Tensor, circular: bool) -> tuple[float, float]:
    """Mean absolute error, and correlation or, on a circle, the mean cosine of the angle between."""
    gap = (read[rows] - true[rows]).abs()
    if circular:
        gap = torch.minimum(gap, 1 - gap)
        return float(gap.mean()), float((2 * torch.pi * gap).cos().mean())
    return float(gap.mean()), float(torch.corrcoef(torch.stack([read[rows], true[rows]]))[0, 1])


def train(
    cache: Path,
    out: Path,
    minutes: float = 20,
    pictures: int = 24_000,
    batch: int = 64,
    threads: int = 1,
    seed: int = 3,
) -> dict[str, Any]:
    """Draw the pictures, train for so many minutes, calibrate, write safetensors (fp16) and JSON; the calibration."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, styles, values = draw(pictures, *variants(art_module.load(cache), _VARIANTS, rng), rng)
    wanted, weights = encode_params(values), declared()[styles].float()[:, [0, 0, 1, 2, 3, 4, 4]]
    scale = torch.tensor([1.0, 1.0, 8.0, 8.0, 8.0, 1.0, 1.0])
    net = JudgeNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
    begin, done, step = time.perf_counter(), 0.0, 0
    while done < 1:
        done = min(1.0, (time.perf_counter() - begin) / (60 * minutes))
        rows = torch.from_numpy(rng.choice(pictures, batch, replace=False))
        style, outputs = net(pixels(roughen(images[rows.numpy()], rng)))
        read = outputs[torch.arange(batch), styles[rows]]
        gaps = (scale * weights[rows] * (read - wanted[rows]).square()).sum(1).mean()
        loss = cross_entropy(style, styles[rows]) + gaps
        loss.backward()
        warm = min(1.0, (step + 1) / 200)
        optimizer.param_groups[0]["lr"] = 3e-3 * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    calibration = {"trained on": list(art_module.JUDGE_SETS), "steps": step, **calibrate(net, cache)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, out)
    out.chmod(0o644)
    out.with_suffix(".json").write_text(json.dumps(calibration, indent=1) + "\n")
    return calibration
