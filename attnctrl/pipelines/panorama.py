"""A wide picture of windows that overlap, a prompt each (arXiv 2412.18597; MultiDiffusion, arXiv 2302.08113)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import ControlError
from ..host import Host
from ..processors.attaching import Controls, attached, host_of
from ..registry import controls_of
from ..words import Prompts
from .checks import check_call
from .mixin import stock_call

OVERLAP = 0.5
"""The share of a window that the next one covers too."""


def panorama(
    pipe: Any,
    prompts: Sequence[str],
    *,
    overlap: float = OVERLAP,
    seed: int = 0,
    control: Controls = None,
    stepped: Callable[[int, int], None] | None = None,
    **call: Any,
) -> Image.Image:
    """One picture of windows from left to right, each of the pipeline's own size and with its own prompt.

    The windows are rows of one batch and share their noise where they overlap; after every step each latent there is
    the mean of all windows that hold it, a window's weight falling from its middle to its edges: w_j = min(u, 2 - u),
    u = (2 j + 1) / L for column j of L. control: any controls of the batch. height, width: of a window. Raises
    ControlError for one window, an overlap that leaves no column, and a solver that adds noise of its own.
    """
    host, controls = host_of(pipe), controls_of(control)
    if len(prompts) < 2:
        raise ControlError("a panorama needs two prompts or more, one for each window; repeat one for a wide picture")
    if getattr(pipe.scheduler.config, "stochastic_sampling", False):
        raise ControlError("windows are blended after steps without noise of their own; use a deterministic solver")
    run, filled = stock_call(pipe, {"prompt": list(prompts), **call}, controls)
    check_call(filled)
    usual = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = (filled.get(side) or usual for side in ("height", "width"))
    rows, columns = height // host.unit, width // host.unit
    shared = round(overlap * columns)
    if not 0 < shared < columns:
        raise ControlError(f"an overlap of {overlap:g} leaves no column of the {columns} of a window; give 0.1 to 0.9")
    whole = columns + (len(prompts) - 1) * (columns - shared)
    filled |= {"latents": _noise(host, pipe, rows, columns, whole, len(prompts), seed), "output_type": "latent"}

    def after(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if stepped:
            stepped(step + 1, running.num_timesteps)
        grid = _as_grid(tensors["latents"], rows, columns)
        fine = grid.shape[2] // columns
        wide = joined(grid, (columns - shared) * fine)
        tensors["latents"] = _as_before(_windows(wide, len(grid), grid.shape[2], (columns - shared) * fine), tensors)
        return tensors

    scale, said = filled.get("true_cfg_scale"), Prompts(tuple(filled["prompt"]), filled)
    with attached(pipe, controls, guidance_scale=scale, prompts=said):
        latents = run(pipe, **filled, callback_on_step_end=after).images
    grid = _as_grid(latents, rows, columns)
    wide = joined(grid, (columns - shared) * (grid.shape[2] // columns))
    return host.decoded(_as_before(wide, {"latents": latents}), rows * host.unit, whole * host.unit)[0]


def joined(windows: Tensor, stride: int) -> Tensor:
    """Windows [K, h, L, C], each `stride` columns further right, as one [1, h, L + (K - 1) stride, C]: their mean."""
    count, height, length, channels = windows.shape
    u = (torch.arange(length, dtype=torch.float64) * 2 + 1) / length
    weight = torch.minimum(u, 2 - u).to(windows)[:, None]
    total = windows.new_zeros(1, height, length + (count - 1) * stride, channels)
    weights = windows.new_zeros(total.shape[2], 1)
    for k, window in enumerate(windows):
        place = slice(k * stride, k * stride + length)
        total[0, :, place] += window * weight
        weights[place] += weight
    return total / weights


def _windows(wide: Tensor, count: int, length: int, stride: int) -> Tensor:
    return torch.cat([wide[:, :, k * stride : k * stride + length] for k in range(count)])


def _as_grid(latents: Tensor, rows: int, columns: int) -> Tensor:
    """Latents as [K, h, w, C], whether the model packs them to tokens [K, S, C] or not [K, C, h, w]."""
    return latents.unflatten(1, (rows, columns)) if latents.ndim == 3 else latents.permute(0, 2, 3, 1)


def _as_before(grid: Tensor, tensors: dict[str, Any]) -> Tensor:
    return grid.flatten(1, 2) if tensors["latents"].ndim == 3 else grid.permute(0, 3, 1, 2)


def _noise(host: Host, pipe: Any, rows: int, columns: int, whole: int, count: int, seed: int) -> Tensor:
    """The windows' latents, cut out of one noise."""
    fine = host.unit // pipe.vae_scale_factor
    channels = pipe.vae.config.latent_channels
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, channels, rows * fine, whole * fine, generator=generator)
    stride = round((whole - columns) / (count - 1)) * fine
    cut = torch.cat([noise[..., k * stride : k * stride + columns * fine] for k in range(count)])
    cut = cut.to(host.device, pipe.transformer.dtype)
    packed = getattr(pipe, "_pack_latents", None)
    return cut if packed is None else packed(cut, count, channels, rows * fine, columns * fine)
