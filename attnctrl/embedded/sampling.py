"""Sampling while training, without a pipeline: Euler steps with true guidance."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from attnctrl.embedded.latents import CHANNELS, PATCH
from attnctrl.embedded.model import TinyModel, Tokens

PROMPTS = (
    "a fox, watercolor",
    "a butterfly, neon sign",
    "a red car, flat icon",
    "a penguin, 3d render",
    "a house, line art",
    "a star, comic",
    "a cat, sticker",
    "a guitar, paper cutout",
    "a mushroom, pixel art",
    "a rocket, blueprint",
    "a strawberry, sticker",
    "a fish, watercolor",
    "a crown, 3d render",
    "a key, neon sign",
    "a fox left of a mushroom, sticker",
    "an apple above a cactus, flat icon",
)
"""What a run's sheets show."""


@torch.no_grad()
def sample(
    net: TinyModel, tokens: Tokens, prompts: list[str], size: tuple[int, int] = (64, 64), steps: int = 24, seed: int = 0
) -> Tensor:
    """Latents [n, 16, h, w] of pictures of `size` (width, height), with guidance 3 and the model's own schedule."""
    width, height = size[0] // PATCH, size[1] // PATCH
    x = torch.randn(len(prompts), CHANNELS, height, width, generator=torch.Generator().manual_seed(seed))
    shift = net.shift(height * width // 4)
    sigmas = torch.linspace(1, 1 / steps, steps)
    sigmas = torch.cat([shift / (shift + (1 / sigmas - 1)), torch.zeros(1)])
    clip_ids, t5_ids = tokens.encode(prompts + [""] * len(prompts))
    for now, then in itertools.pairwise(sigmas):
        wanted, plain = net(torch.cat([x, x]), now.expand(2 * len(prompts)), clip_ids, t5_ids).chunk(2)
        x = x + (then - now) * (plain + 3.0 * (wanted - plain))
    return x
