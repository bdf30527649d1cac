"""What a picture will be, while it is made."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..processors.attaching import host_of


class Preview:
    """Estimates of the finished pictures of one pipeline run, from the latents after each step.

    With x the latents and s the noise level after two steps, the straight path of a flow model ends at
    x0 = x1 - s1 (x1 - x0) / (s1 - s0); exact for an Euler step.
    """

    def __init__(self, pipe: Any, height: int, width: int) -> None:
        self.pipe, self.height, self.width = pipe, height, width
        self._last: tuple[Tensor, float] | None = None

    def see(self, latents: Tensor) -> Tensor:
        """Take in the latents after a step; the estimate of the clean ones."""
        scheduler = self.pipe.scheduler
        sigma = float(scheduler.sigmas[min(scheduler.step_index or 0, len(scheduler.sigmas) - 1)])
        last, self._last = self._last, (latents, sigma)
        if last is None or last[0].shape != latents.shape or last[1] <= sigma:
            return latents
        return latents - sigma * (latents - last[0]) / (sigma - last[1])

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Decode latents as the pipeline does at its end."""
        return host_of(self.pipe).decoded(latents, self.height, self.width)
