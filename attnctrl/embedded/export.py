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


_LINES = {
    "loss": "loss",
    "right": "one object, its caption",
    "swapped": "another subject's word",
    "pair": "two objects, their caption",
    "pair_exchanged": "their phrases exchanged",
}
"""Of a log: all but the first at noise level 0.85."""


def loss_curve(run: Path, path: Path) -> Path:
    """Draw a run's loss against the pictures it has seen, with the losses for right and for wrong captions."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = sorted({row["samples"]: row for row in rows}.values(), key=lambda row: row["samples"])
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, label in _LINES.items():
        points = [(row["samples"] / 1000, row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.5)
    axes.set(xlabel="thousand pictures seen", ylabel="mean squared error", ylim=(None, 0.75))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
