"""From a reference picture to a batch row: encoded by the pipeline's autoencoder, with its one fixed noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..control import Reference
from ..errors import ControlError
from ..pictures import fit_picture
from ..rows import PictureRow, reversed_odds


def encoded(pipe: Any, reference: Reference, height: int, width: int) -> Tensor:
    """The picture's latent [1, C, h, w] at height x width px, shifted and scaled as the pipeline does."""
    picture = fit_picture(reference.picture, width, height)
    pixels = pipe.image_processor.preprocess(picture, height=height, width=width)
    vae = pipe.vae
    latent = vae.encode(pixels.to(device=pipe._execution_device, dtype=vae.dtype)).latent_dist.mode()
    scaled: Tensor = (latent - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


def row_of(
    pipe: Any, reference: Reference, latent: Tensor, hidden: Tensor, tokens: int, text: Tensor, pooled: Tensor
) -> PictureRow:
    """The row of a picture with so many image tokens, its noise drawn from the reference's seed, in `hidden`'s dtype.

    Raises ControlError where the latent has more channels or tokens than the transformer's input.
    """
    if any(a > b for a, b in zip(latent.shape[1:], hidden.shape[1:], strict=True)):
        shapes = " and ".join(" x ".join(str(n) for n in x.shape[1:]) for x in (latent, hidden))
        raise ControlError(
            f"a picture reference and the input of {type(pipe).__name__} have the shapes {shapes}; "
            "use a reference prompt (the first of the batch) there"
        )
    odds = reversed_odds(pipe.scheduler, tokens) if reference.noise == "finer" else 1.0
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(reference.seed))
    latent, noise, text, pooled = (x.to(hidden.device, hidden.dtype) for x in (latent, noise, text, pooled))
    return PictureRow(latent, noise, text, pooled, odds)
