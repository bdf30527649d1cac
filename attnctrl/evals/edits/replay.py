"""A true picture opened for editing without inversion: its latents noised to every step's level, and replayed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...pictures import fit_picture
from ...pipelines.captured import Led, Stepped, drawn
from ...pipelines.editing import Opened
from ...pipelines.mixin import ControlledPipeline
from ...processors.attaching import host_of


def replayed(
    pipe: ControlledPipeline, picture: Image.Image, prompt: str, seed: int, stepped: Stepped | None = None, **call: Any
) -> Opened:
    """Open a picture under its caption: at noise level sigma its latents are (1 - sigma) picture + sigma noise.

    The noise of `seed` is one for all steps; the picture is cut and resized to the run's size. Its attention is
    captured on the way, as in a picture that the model drew. Not an inversion: of the noise alone the model would make
    another picture.
    """
    noise, led = noised(pipe, picture, seed, call)
    _, source = drawn(pipe, prompt, [], {**call, "latents": noise}, led=led, stepped=stepped)
    height, width = size_of(pipe, call)
    return Opened(fit_picture(picture, width, height), source, call)


def noised(pipe: ControlledPipeline, picture: Image.Image, seed: int, call: dict[str, Any]) -> tuple[Tensor, Led]:
    """The noise that a run of `call` begins with, and what leads it along a picture's noised latents."""
    clean = latent_of(pipe, picture, *size_of(pipe, call))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)

    def led(run: Any, step: int, latents: Tensor) -> Tensor:
        sigma = run.scheduler.sigmas[step + 1].to(latents)
        return (1 - sigma) * clean.to(latents) + sigma * noise.to(latents)

    return noise, led


def size_of(pipe: ControlledPipeline, call: dict[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of a call's pictures."""
    usual = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = (call.get(side) or getattr(pipe.settings, side) or usual for side in ("height", "width"))
    return height, width


@torch.no_grad()
def latent_of(pipe: ControlledPipeline, picture: Image.Image, height: int, width: int) -> Tensor:
    """A picture's clean latent [1, ...] as the pipeline's call takes it."""
    host, scale = host_of(pipe), pipe.vae_scale_factor
    shape: Any = SimpleNamespace(grid=(height // host.unit, width // host.unit))
    hidden = torch.empty(1, 1, height // scale, width // scale, device="meta")
    latent = host.encoded_picture(picture, {host.edge.batched.latents: hidden}, shape)
    return latent.to(pipe.device, pipe.transformer.dtype)
