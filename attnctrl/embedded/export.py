"""From a training run to a shipped folder, and the pictures of its course."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL

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
    """Draw a run's loss against its steps, with the loss for the right and for a swapped subject's word."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    lines = {"loss": "loss", "right": "loss at noise level 0.85, the caption's subject", "swapped": "another subject"}
    for name, label in lines.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.5)
    axes.set(xlabel="steps", ylabel="mean squared error", ylim=(None, min(1.0, max(row["loss"] for row in rows))))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
