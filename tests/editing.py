"""One transformer call of an edit on tiny random models: ours under a control, and a dense float64 one by a site function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from references.attention import apply_rope
from references.flux import image_ids
from references.flux import reference_forward as flux_forward
from references.sd3 import reference_forward as sd3_forward
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import Control, attached
from attnctrl.processors.attaching import host_of
from attnctrl.source import Source
from attnctrl.words import Prompts, columns_of

GRID = (4, 6)
IMAGE = GRID[0] * GRID[1]
LENGTH = 40
SOURCE = "a red fox, flat"
CLOSE = {"atol": 2e-6, "rtol": 2e-6}


@dataclass(frozen=True)
class At:
    """One attention site of the naive model: q, k, v [B, S, H, D] before rotation, and where things stand in S."""

    index: int
    kind: str
    q: Tensor
    k: Tensor
    v: Tensor
    rotate: Callable[[Tensor], Tensor]
    text: slice
    image: slice

    @property
    def joint(self) -> bool:
        """Whether text stands in the sequence."""
        return self.text.stop > self.text.start


Site = Callable[[At], Tensor]


@dataclass
class Case:
    """A model, the edits' prompts, guidance or not; rows are [source, edits] in each half, negative half first."""

    model: str
    prompts: tuple[str, ...] = ("a blue fox, flat",)
    guided: bool = False
    guests: int = 1
    step: int = 1
    steps: int = 10
    pipe: Any = field(init=False)

    def __post_init__(self) -> None:
        make = {"FLUX": tiny_flux, "SD3": tiny_sd3, "SD3.5": lambda: tiny_sd3(qk_norm="rms_norm", dual=(0, 1))}
        self.pipe = make[self.model]()
        self.pipe.transformer.double()
        self.pipe._guidance_scale = 3.0 if self.guided else 1.0

    @property
    def flux(self) -> bool:
        return self.model == "FLUX"

    @property
    def source(self) -> Source:
        """A run of random latents whose attention to its words is random too."""
        g = torch.Generator().manual_seed(7)
        parts = host_of(self.pipe).parts(SOURCE, max_sequence_length=LENGTH)
        columns = tuple(range(sum(part.length for part in {part.first: part for part in parts}.values())))
        shape = (IMAGE, 16) if self.flux else (16, 2 * GRID[0], 2 * GRID[1])
        latents = torch.randn(self.steps + 1, *shape, generator=g, dtype=torch.float64)
        return Source(SOURCE, latents, GRID, torch.rand(len(columns), IMAGE, generator=g), columns, parts)

    def inputs(self, with_source: bool = False) -> dict[str, Any]:
        """Arguments of the transformer's call, [negative half, prompts' half] under guidance."""
        g, latents = torch.Generator().manual_seed(5), self.source.latents
        noise = torch.randn(len(self.prompts), *latents.shape[1:], generator=g, dtype=torch.float64)
        guests = bool(with_source and self.guests)
        noise = torch.cat([latents[self.step : self.step + 1], noise]) if guests else noise
        said = [*([SOURCE] if guests else []), *self.prompts]
        texts, pooled = zip(*[self._encoded(said, negative) for negative in ([True, False] if self.guided else [False])],
                            strict=True)  # fmt: skip
        halves = len(texts)
        given = {
            "hidden_states": torch.cat([noise] * halves),
            "encoder_hidden_states": torch.cat(texts).double(),
            "pooled_projections": torch.cat(pooled).double(),
            "timestep": torch.full((halves * len(said),), 0.7 if self.flux else 700.0, dtype=torch.float64),
        }
        return given | ({"img_ids": image_ids(*GRID), "txt_ids": torch.zeros(LENGTH, 3)} if self.flux else {})

    def _encoded(self, said: list[str], negative: bool) -> tuple[Tensor, Tensor]:
        prompts = ["a rag"] * len(said) if negative else said
        with torch.no_grad():
            if self.flux:
                return self.pipe.encode_prompt(prompts, None, max_sequence_length=LENGTH)[:2]
            found = self.pipe.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=LENGTH
            )
            return found[0], found[2]

    def columns(self, words: str, prompt: str | None = None) -> list[int]:
        """Text columns of words."""
        said = prompt or self.prompts[0]
        return list(columns_of(host_of(self.pipe), said, (words,), max_sequence_length=LENGTH)[0].columns)

    def ours(self, control: Control | list[Control]) -> Tensor:
        """The prediction for the edits' rows under a control."""
        said = Prompts(self.prompts, {"max_sequence_length": LENGTH})
        with torch.no_grad(), attached(self.pipe, control, prompts=said, source=self.source) as session:
            assert session
            conditional = (False, True) if self.guided else True
            session.at(self.step, of=self.steps, sigma=0.7, conditional=conditional)
            return self.pipe.transformer(**self.inputs(), return_dict=False)[0]

    def stock(self) -> Tensor:
        """The same call without any."""
        with torch.no_grad():
            return self.pipe.transformer(**self.inputs(), return_dict=False)[0]

    def naive(self, site: Site) -> Tensor:
        """The same rows of the dense model whose attention is `site`, the source's rows beside them."""
        given = self.inputs(with_source=True)

        def flux_site(index: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, text: int) -> Tensor:
            def rotate(x: Tensor) -> Tensor:
                return apply_rope(x, cos, sin, torch.float32)

            return site(At(index, "joint", q, k, v, rotate, slice(0, text), slice(text, q.shape[1])))

        def sd3_site(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, image: int) -> Tensor:
            return site(At(index, kind, q, k, v, lambda x: x, slice(image, q.shape[1]), slice(0, image)))

        with torch.no_grad():
            if self.flux:
                out = flux_forward(self.pipe.transformer, **given, site_fn=flux_site)
            else:
                out = sd3_forward(self.pipe.transformer, **given, site_fn=sd3_site, norm_dtype=torch.float32)
        halves = out.chunk(2 if self.guided else 1)
        return torch.cat([half[self.guests :] for half in halves])
