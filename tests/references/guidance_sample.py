"""How guided velocities are combined (perturbation guidance, CFG, APG), and a naive Euler loop over them."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def guided(cond: Tensor, perturbed: Sequence[tuple[float, Tensor]], uncond: Tensor | None = None, scale: float = 1.0):
    """cond + sum w (cond - pert), and under CFG uncond + g (cond - uncond) + sum w (cond - pert); no CFG without uncond."""
    base = cond if uncond is None else uncond + scale * (cond - uncond)
    return base + sum((weight * (cond - other) for weight, other in perturbed), torch.zeros_like(cond))


class ProjectedGuidance:
    """APG (arXiv 2410.02416) on the denoised prediction x0 = x - sigma v; one object per run keeps the average.

    d = (x0_cond - x0_uncond) + momentum * (d of the step before, not clipped), clipped to norm_threshold per row
    (no clipping at 0); x0 = x0_cond + (g - 1) (d_orthogonal + eta d_parallel), with respect to the row's x0_cond.
    """

    def __init__(self, scale: float, eta: float = 0.0, momentum: float = 0.0, norm_threshold: float = 15.0) -> None:
        self.scale, self.eta, self.momentum, self.norm_threshold = scale, eta, momentum, norm_threshold
        self.average: Tensor | float = 0.0

    def __call__(self, latents: Tensor, sigma: float, cond: Tensor, uncond: Tensor) -> Tensor:
        """The guided velocity from those of both texts; latents and velocities [B, ...]."""
        shape = latents.shape
        x, c, u = (z.flatten(1) for z in (latents, latents - sigma * cond, latents - sigma * uncond))
        self.average = c - u + self.momentum * self.average
        d = self.average
        if self.norm_threshold > 0:
            d = d * (self.norm_threshold / d.pow(2).sum(dim=1, keepdim=True).sqrt()).clamp(max=1.0)
        parallel = (d * c).sum(dim=1, keepdim=True) / (c * c).sum(dim=1, keepdim=True) * c
        clean = c + (self.scale - 1) * (d - parallel + self.eta * parallel)
        return ((x - clean) / sigma).reshape(shape)


def euler(
    velocity: Callable[[int, float, Tensor], Tensor], latents: Tensor, sigmas: Sequence[float] | Tensor
) -> Tensor:
    """x + (next sigma - sigma) velocity(step, sigma, x) over all steps; sigmas end with 0."""
    x = latents
    for step, (sigma, following) in enumerate(pairwise(float(s) for s in sigmas)):
        x = x + (following - sigma) * velocity(step, sigma, x)
    return x
