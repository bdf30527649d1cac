"""Pictures of a pipeline folder by stock diffusers, in seeded batches, and at shifted positions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor

from attnctrl.embedded.canvas import Array


class Drawer:
    """A FluxPipeline or StableDiffusion3Pipeline folder with its sampling defaults (attnctrl.json)."""

    def __init__(self, folder: Path) -> None:
        self.pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        if not isinstance(self.pipeline, FluxPipeline | StableDiffusion3Pipeline):
            raise TypeError(f"{folder} is a {type(self.pipeline).__name__}, neither FLUX nor SD3")
        self.sampling: dict[str, Any] = json.loads((folder / "attnctrl.json").read_text())

    def __call__(
        self, prompts: list[str], seeds: list[int], size: tuple[int, int] | None = None, batch: int = 16
    ) -> list[Array]:
        """One picture a prompt, uint8 [H, W, 3], each from its own seed; `size` (width, height) if not the usual."""
        pictures: list[Array] = []
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            options = dict(self.sampling)
            if size:
                options["width"], options["height"] = size
            if "negative_prompt" in options:
                options["negative_prompt"] = [options["negative_prompt"]] * len(part)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
            pictures += [np.asarray(image) for image in self.pipeline(part, generator=generators, **options).images]
        return pictures

    @property
    def columns(self) -> int:
        """Image tokens to a row."""
        return int(self.sampling["width"]) // (2 * self.pipeline.vae_scale_factor)

    @contextmanager
    def shifted(self, columns: int) -> Iterator[None]:
        """Within it, the image stands `columns` tokens further right."""
        if isinstance(self.pipeline, FluxPipeline):
            move = torch.tensor([0.0, 0.0, columns])

            def moved(module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return args, {**options, "img_ids": options["img_ids"] + move}

            handle = self.pipeline.transformer.register_forward_pre_hook(moved, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()
            return
        embedding = self.pipeline.transformer.pos_embed
        table: Tensor = embedding.pos_embed
        side = embedding.pos_embed_max_size
        embedding.pos_embed = table.view(1, side, side, -1).roll(-columns, 2).reshape(table.shape)
        try:
            yield
        finally:
            embedding.pos_embed = table
