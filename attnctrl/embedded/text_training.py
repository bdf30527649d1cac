"""A start for the text encoders: the pooled text learns to tell what a caption says before it has to steer pictures.

Without it the styles, which change every pixel, are learnt first and the pooled text of two subjects stays alike.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from attnctrl.embedded.model import TinyFlux, Tokens
from attnctrl.embedded.scenes import Scene, sample


def facts(scene: Scene) -> list[str]:
    """What a scene's caption says, as labels such as `first fox`, `second red`, `left of`."""
    text = f" {scene.caption},"
    said = []
    for place, thing in zip(("first", "second"), scene.objects, strict=False):
        if scene.caption:
            said.append(f"{place} {thing.subject}")
        if thing.color and f" {thing.color} {thing.subject}" in text:
            said.append(f"{place} {thing.color}")
    said += [word for word in (scene.relation, scene.background, scene.style) if word and f" {word}" in text]
    return said


def teach(net: TinyFlux, tokens: Tokens, steps: int = 1500, batch: int = 192, seed: int = 0) -> float:
    """Move the pooled text by a fixed random vector for each fact of the caption; the last mean squared error."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    drawn = [sample(rng) for _ in range(24_000)]
    said = [facts(scene) for scene in drawn]
    names = {name: i for i, name in enumerate(sorted({fact for some in said for fact in some}))}
    width = net.clip.config.hidden_size
    vectors = torch.randn(len(names), width, generator=generator) * 0.8
    shifts = torch.stack([vectors[[names[fact] for fact in some]].sum(0) for some in said])
    clip_ids, _ = tokens.encode([scene.caption for scene in drawn])
    before = copy.deepcopy(net.clip).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.clip.parameters(), lr=2e-3, betas=(0.9, 0.99))
    loss = Tensor()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 50) * (1 - step / steps)
        rows = torch.from_numpy(rng.integers(0, len(drawn), batch))
        ids = clip_ids[rows]
        wanted = before(ids).pooler_output + shifts[rows]
        loss = torch.nn.functional.mse_loss(net.clip(ids).pooler_output, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
