"""From a picture to the transformer's latents, by the pipeline's own autoencoder."""

from __future__ import annotations

import inspect
from typing import Any

from PIL import Image
from torch import Tensor

from ..pictures import fit_picture


def encoded(pipe: Any, picture: Image.Image, height: int, width: int) -> Tensor:
    """The picture's latent [1, C, h, w] at height x width px, shifted and scaled as the pipeline does."""
    fitted = fit_picture(picture, width, height)
    pixels = pipe.image_processor.preprocess(fitted, height=height, width=width)
    vae = pipe.vae
    latent = vae.encode(pixels.to(device=pipe._execution_device, dtype=vae.dtype)).latent_dist.mode()
    scaled: Tensor = (latent - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


def usual_length(pipe: Any) -> int:
    """The text length of the pipeline's call where none is given."""
    own = getattr(getattr(pipe, "settings", None), "max_sequence_length", None)
    return int(own or inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default)
