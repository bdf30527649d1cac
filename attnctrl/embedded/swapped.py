"""The check beside every loss curve: does the loss depend on the subject's word?"""

from __future__ import annotations

from pathlib import Path

import torch

from attnctrl.embedded import dataset
from attnctrl.embedded.latents import PatchCode, pixels
from attnctrl.embedded.model import TinyModel, Tokens
from attnctrl.embedded.scenes import RELATIONS, SUBJECT_NAMES

SIGMA = 0.85


class Swapped:
    """The loss of fixed single objects at noise level 0.85 with their captions, and with another subject's word."""

    def __init__(self, folder: Path, tokens: Tokens, code: PatchCode, count: int = 48) -> None:
        pictures, captions = dataset.load(folder)[64, 64]
        rows, right, wrong = [], [], []
        for row, caption in enumerate(captions):
            named = [name for name in SUBJECT_NAMES if f" {name}," in f" {caption},"]
            if named and not any(f" {word} " in caption for word in RELATIONS):
                rows.append(row)
                right.append(caption)
                others = [name for name in ("fox", "house", "key", "strawberry") if name not in named]
                wrong.append(caption.replace(named[-1], others[row % len(others)]))
            if len(rows) == count:
                break
        self.latents = code.encode(pixels(pictures[rows]))
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))
        self.right, self.wrong = tokens.encode(right), tokens.encode(wrong)

    @torch.no_grad()
    def __call__(self, net: TinyModel) -> dict[str, float]:
        """`right` and `swapped` mean squared errors: equal while subjects are not learnt."""
        mixed = torch.lerp(self.latents, self.noise, SIGMA)
        sigma = torch.full((len(mixed),), SIGMA)
        losses = {}
        for name, ids in (("right", self.right), ("swapped", self.wrong)):
            error = net(mixed, sigma, *ids) - (self.noise - self.latents)
            losses[name] = round(float(error.square().mean()), 5)
        return losses
