"""A naive Euler loop over the reference FLUX forward, with FLUX's true classifier-free guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from references.flux import SiteFn, plain_site, reference_forward

SiteFnFactory = Callable[[int, float, str], SiteFn]
"""(step index, sigma of the step, "cond" or "uncond") -> the site_fn of that forward."""


@dataclass
class Condition:
    """What one forward is conditioned on: prompt [B,L,C], pooled [B,P], txt_ids [L,3], img_ids [S_img,3]."""

    encoder_hidden_states: Tensor
    pooled_projections: Tensor
    txt_ids: Tensor
    img_ids: Tensor
    guidance: float | None = None


def _predict(transformer: nn.Module, latents: Tensor, sigma: float, condition: Condition, site_fn: SiteFn) -> Tensor:
    rows = latents.shape[0]
    guidance = None if condition.guidance is None else torch.full((rows,), condition.guidance, dtype=latents.dtype)
    return reference_forward(
        transformer,
        latents,
        condition.encoder_hidden_states,
        condition.pooled_projections,
        torch.full((rows,), sigma, dtype=latents.dtype),
        condition.img_ids,
        condition.txt_ids,
        site_fn,
        guidance,
    )


@torch.no_grad()
def reference_sample(
    transformer: nn.Module,
    scheduler_sigmas: Sequence[float] | Tensor,
    latents: Tensor,
    cond: Condition,
    uncond: Condition | None = None,
    true_cfg_scale: float = 1.0,
    site_fn_factory: SiteFnFactory | None = None,
    before_step: Callable[[int, float, Tensor], Tensor] | None = None,
) -> Tensor:
    """x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v(x_i, sigma_i), over the N steps of N+1 sigmas (the last 0).

    With `uncond` and true_cfg_scale s > 1 (the pipeline's own rule) v = v_neg + s (v_pos - v_neg), from two
    separate forwards, cond first; otherwise v = v_pos. `latents` are packed [B,S_img,C].
    `before_step(i, sigma_i, x)` may replace the latents ahead of a step, e.g. row 0 by
    sigma*eps + (1-sigma)*z_ref for an external reference.
    """
    sigmas = [float(s) for s in scheduler_sigmas]
    factory = site_fn_factory or (lambda step, sigma, which: plain_site)
    x = latents
    for i, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        if before_step is not None:
            x = before_step(i, sigma, x)
        velocity = _predict(transformer, x, sigma, cond, factory(i, sigma, "cond"))
        if uncond is not None and true_cfg_scale > 1:
            negative = _predict(transformer, x, sigma, uncond, factory(i, sigma, "uncond"))
            velocity = negative + true_cfg_scale * (velocity - negative)
        x = x + (next_sigma - sigma) * velocity
    return x
