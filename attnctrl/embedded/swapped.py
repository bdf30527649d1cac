"""The check beside every loss curve: does the loss depend on the words, and on which word stands where?"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from attnctrl.embedded import dataset
from attnctrl.embedded.latents import PatchCode, pixels
from attnctrl.embedded.model import TinyModel, Tokens
from attnctrl.embedded.scenes import RELATIONS, SUBJECT_NAMES

SIGMA = 0.85
_OTHERS = ("fox", "house", "key", "strawberry", "guitar")


def nouns(caption: str) -> list[str]:
    """The phrases between articles, relation and style: `red fox`, `key`."""
    text = caption.split(" on ")[0].split(",")[0]
    for relation in RELATIONS:
        text = text.replace(f" {relation} ", "|")
    return [part.split(" ", 1)[1] for part in text.split("|") if " " in part]


def subject(noun: str) -> str:
    """The subject of a noun phrase."""
    return next(name for name in SUBJECT_NAMES if f" {noun}".endswith(f" {name}"))


def exchanged(caption: str) -> str:
    """The caption of a pair with its two noun phrases exchanged (articles stay)."""
    first, second = nouns(caption)
    head, tail = caption.split(first, 1)
    return head + second + tail[::-1].replace(second[::-1], first[::-1], 1)[::-1]


def replaced(caption: str, row: int) -> str:
    """The caption with other subjects (colors stay)."""
    others = [other for other in _OTHERS if other not in caption]
    for i, noun in enumerate(nouns(caption)):
        caption = caption.replace(subject(noun), others[(row + i) % len(others)], 1)
    return caption


class Swapped:
    """The loss at noise level 0.85 of fixed pictures with their captions and with wrong ones.

    `right`, `swapped`: single objects, another subject's word. `pair`, `pair_exchanged`, `pair_replaced`: two objects
    of different subjects, their noun phrases exchanged, and both subjects replaced; `order_error` is the standard
    error of the mean difference of exchanged and right.
    """

    def __init__(self, folder: Path, tokens: Tokens, code: PatchCode, count: int = 48, pairs: int = 160) -> None:
        pictures, captions = dataset.load(folder)[64, 64]
        self.sets: dict[str, tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]] = {}
        single = [row for row, caption in enumerate(captions) if len(nouns(caption)) == 1][:count]
        double = [row for row, caption in enumerate(captions) if len({subject(n) for n in nouns(caption)}) == 2][:pairs]
        for name, rows in (("single", single), ("pair", double)):
            if not rows:
                continue
            said = [captions[row] for row in rows]
            wrong = [replaced(caption, i) for i, caption in enumerate(said)]
            asked = {"right": said, "swapped": wrong}
            if name == "pair":
                asked = {
                    "pair": said,
                    "pair_exchanged": [exchanged(caption) for caption in said],
                    "pair_replaced": wrong,
                }
            latents = code.encode(pixels(pictures[rows]))
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
            self.sets[name] = (latents, noise, {key: tokens.encode(captions) for key, captions in asked.items()})

    @torch.no_grad()
    def __call__(self, net: TinyModel) -> dict[str, float]:
        """The mean squared errors."""
        losses: dict[str, float] = {}
        errors: dict[str, Tensor] = {}
        for latents, noise, asked in self.sets.values():
            mixed, sigma = torch.lerp(latents, noise, SIGMA), torch.full((len(latents),), SIGMA)
            for name, ids in asked.items():
                errors[name] = (net(mixed, sigma, *ids).float() - (noise - latents)).square().mean((1, 2, 3))
                losses[name] = round(float(errors[name].mean()), 5)
        if "pair" in errors:
            gap = errors["pair_exchanged"] - errors["pair"]
            losses["order_error"] = round(float(gap.std() / len(gap) ** 0.5), 5)
        return losses
