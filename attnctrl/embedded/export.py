"""From a training run to a shipped folder, and the pictures of its course."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw

from attnctrl.embedded import _WEIGHTS
from attnctrl.embedded.model import Tokens
from attnctrl.embedded.training import NETS, TrainConfig


def export_run(run: Path, folder: Path, vae_folder: Path | None = None) -> dict[str, float]:
    """Write the averaged weights of a run's last checkpoint as a pipeline folder; its step and minutes.

    The autoencoder is the one of `vae_folder`, else of the run, else the shipped one.
    """
    if vae_folder is None:
        vae_folder = run / "vae" if (run / "vae").exists() else _WEIGHTS / "tiny-flux" / "vae"
    tokens = Tokens.load(run)
    config = TrainConfig.model_validate_json((run / "config.json").read_text())
    net = NETS[config.model](tokens)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    net.load_state_dict(state["average"])
    vae = AutoencoderKL.from_pretrained(vae_folder)
    vae.register_to_config(_name_or_path=config.model)
    net.export(folder, tokens, vae)
    shutil.copy(run / "code.npz", folder)
    return {"step": state["step"], "minutes": state["seconds"] / 60}


def loss_curve(run: Path, path: Path) -> Path:
    """Draw a run's loss against its steps as a PNG, the loss on a logarithmic scale."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps, loss = np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows])
    width, height, margin = 640, 320, 44
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    low, high = np.log(0.95 * loss.min()), np.log(min(1.0, loss.max()))

    def place(step: float, value: float) -> tuple[float, float]:
        x = margin + (width - 1.5 * margin) * step / steps.max()
        y = height - margin - (height - 1.5 * margin) * (np.log(value) - low) / (high - low)
        return float(x), float(np.clip(y, margin / 2, height - margin))

    for value in (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0):
        if low < np.log(value) < high:
            draw.line([place(0, value), place(steps.max(), value)], fill="#dddddd")
            draw.text((8, place(0, value)[1] - 6), f"{value:.2f}", fill="black")
    for step in range(0, int(steps.max()) + 1, 1000):
        draw.text((place(step, 1.0)[0] - 6, height - margin + 8), str(step), fill="black")
    draw.text((width // 2 - 20, height - 18), "steps", fill="black")
    draw.line([place(step, value) for step, value in zip(steps, loss, strict=True)], fill="#c03030", width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    return path
