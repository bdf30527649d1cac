"""A start for the text encoders: the pooled text learns to tell what a caption says before it has to steer pictures.

Without it the styles, which change every pixel, are learnt first and the pooled text of two subjects stays alike.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnctrl.embedded.model import TinyModel, Tokens
from attnctrl.embedded.scenes import Scene, sample
from attnctrl.embedded.token_facts import WORLD


def facts(scene: Scene) -> list[str]:
    """What a scene's caption says, as labels such as `first fox`, `second red`, `left of`."""
    text = f" {scene.caption},"
    said = []
    for place, thing in zip(("first", "second", "third"), scene.objects, strict=False):
        if scene.caption:
            said.append(f"{place} {thing.subject}")
        if thing.color and f" {thing.color} {thing.subject}" in text:
            said.append(f"{place} {thing.color}")
    said += [word for word in (scene.relation, scene.background, scene.style) if word and f" {word}" in text]
    return said


def teach(net: TinyModel, tokens: Tokens, steps: int = 1500, seed: int = 0) -> list[float]:
    """Teach every CLIP encoder of a model; their last mean squared errors."""
    return [_teach(clip, tokens, steps, seed + place) for place, clip in enumerate(net.clips())]


def pooled(clip: PreTrainedModel, ids: Tensor) -> Tensor:
    """The pooled text of either kind of CLIP encoder, [n, width]."""
    said = clip(ids)
    return said.text_embeds if "text_embeds" in said else said.pooler_output


def _teach(clip: PreTrainedModel, tokens: Tokens, steps: int, seed: int, batch: int = 192) -> float:
    """Move the pooled text by a fixed random vector for each fact of the caption."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    drawn = [sample(rng, WORLD) for _ in range(min(24_000, batch * steps))]
    said = [facts(scene) for scene in drawn]
    names = {name: i for i, name in enumerate(sorted({fact for some in said for fact in some}))}
    vectors = torch.randn(len(names), clip.config.hidden_size, generator=generator) * 0.8
    shifts = torch.stack([vectors[[names[fact] for fact in some]].sum(0) for some in said])
    clip_ids, _ = tokens.encode([scene.caption for scene in drawn])
    before = copy.deepcopy(clip).requires_grad_(False)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=2e-3, betas=(0.9, 0.99))
    loss = Tensor()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 50) * (1 - step / steps)
        rows = torch.from_numpy(rng.integers(0, len(drawn), batch))
        ids = clip_ids[rows]
        loss = torch.nn.functional.mse_loss(pooled(clip, ids), pooled(before, ids) + shifts[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
