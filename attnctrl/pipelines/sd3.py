"""`ControlledStableDiffusion3Pipeline`: diffusers' StableDiffusion3Pipeline whose call takes a control."""

from __future__ import annotations

from diffusers import StableDiffusion3Pipeline

from .mixin import ControlledPipeline


class ControlledStableDiffusion3Pipeline(ControlledPipeline, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline with `control=`; everything else as in diffusers. SD3 and SD3.5."""
