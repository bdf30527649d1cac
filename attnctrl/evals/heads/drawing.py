"""Many pictures with different heads at once: rows of one batch, each with its own prompt, seed and set of heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from pydantic import Field

from ...descriptions import Description
from ...pipelines.mixin import ControlledPipeline
from ...processors import SoftPAG
from ...where import Where, listed_heads

Head = tuple[int, int]
"""(block, head), both from 0."""


@dataclass(frozen=True, order=True)
class Shot:
    """One picture: the perturbed heads as a text (empty: none), the prompt and the seed of its noise."""

    heads: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Drawing:
    """How all pictures of a run are drawn; with `cfg` off, only the heads guide (HeadHunter's search).

    `strength` -1 draws the perturbed prediction itself.
    """

    strength: float
    u: float
    cfg: bool
    batch_size: int
    num_inference_steps: int | None = None
    height: int | None = None
    width: int | None = None

    def __call__(self, pipe: ControlledPipeline, shots: Sequence[Shot]) -> list[Image.Image]:
        """One picture a shot, in one call of the pipeline; each from its own seed."""
        options = {
            name: value
            for name in ("num_inference_steps", "height", "width")
            if (value := getattr(self, name)) is not None
        }
        if not self.cfg:
            name = "true_cfg_scale" if hasattr(pipe.transformer.config, "guidance_embeds") else "guidance_scale"
            options[name] = 1.0
        listed = sorted({head for shot in shots for head in heads_of(shot.heads)})
        control = None
        if listed:
            sets = tuple(shot.heads for shot in shots)
            where = Where(heads=text_of(listed))
            control = SoftPAG(where=where, strength=self.strength, u=self.u, row_heads=sets)
        return list(
            pipe(
                [shot.prompt for shot in shots],
                control=control,
                generator=[torch.Generator().manual_seed(shot.seed) for shot in shots],
                **options,
            ).images
        )

    def batches(self, shots: Sequence[Shot]) -> list[tuple[Shot, ...]]:
        """Shots in batches of one lowest block each, so that a perturbed pass starts as high as it can.

        The same shots give the same batches on any number of processes: floating point depends on them.
        """
        groups: dict[int, list[Shot]] = {}
        for shot in shots:
            groups.setdefault(min((block for block, _ in heads_of(shot.heads)), default=-1), []).append(shot)
        return [
            tuple(group[i : i + self.batch_size])
            for _, group in sorted(groups.items())
            for i in range(0, len(group), self.batch_size)
        ]


class DrawnRun(Description):
    """What every run that draws pictures with heads depends on; the numbers that are None are the model's own."""

    model: str
    objectives: tuple[str, ...] = Field(min_length=1)
    where: Where = Where()
    strength: float = Field(3.0, gt=0.0, allow_inf_nan=False)
    u: float = Field(1.0, gt=0.0, le=1.0)
    cfg: bool = False
    batch_size: int = Field(16, ge=1)
    num_inference_steps: int | None = Field(None, gt=0)
    height: int | None = Field(None, gt=0)
    width: int | None = Field(None, gt=0)
    threads: int = Field(1, ge=1)
    weights: str | None = None

    @property
    def drawing(self) -> Drawing:
        """How the pictures are drawn."""
        sizes = self.num_inference_steps, self.height, self.width
        return Drawing(self.strength, self.u, self.cfg, self.batch_size, *sizes)


def identity(batch: Sequence[Shot]) -> str:
    """A name for a batch, by what is in it."""
    text = json.dumps([asdict(shot) for shot in batch])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def heads_of(text: str) -> list[Head]:
    """The heads that a text lists, every one with its block."""
    return [(block, head) for block, head in listed_heads(text) if block is not None]


def text_of(heads: Sequence[Head]) -> str:
    """Heads as users write them, in order."""
    return ",".join(f"L{block}H{head}" for block, head in sorted(heads))


def pool(pipe: Any, where: Where) -> list[Head]:
    """Every head that a Where chooses, in order."""
    from ...processors.attaching import host_of

    sites = host_of(pipe).sites
    chosen = where.select(sites)
    return sorted({(sites[i].index, h) for i, some in chosen.items() for h in (some or range(sites[i].heads))})
