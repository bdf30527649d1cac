"""`ControlledFluxPipeline`: diffusers' FluxPipeline whose call takes a control."""

from __future__ import annotations

from diffusers import FluxPipeline

from .mixin import ControlledPipeline


class ControlledFluxPipeline(ControlledPipeline, FluxPipeline):
    """FluxPipeline with `control=`; everything else as in diffusers."""
