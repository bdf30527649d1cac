"""Panoramas: windows against a naive loop in float64, with and without guidance; controls beside; what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from test_observing import MODELS, models, options
from tiny import tiny_flux, tiny_sd3

from attnctrl import AlignedStyle, ControlError, Recipe, controlled, generate
from attnctrl.host import host_of
from attnctrl.pipelines.panorama import joined, panorama
from attnctrl.pipelines.sheets import SheetRow, contact_sheet

PROMPTS = ("a fox", "an owl", "a hat")
CALL = {name: value for name, value in options("FLUX", False).items() if name != "generator"}


def call(model: str) -> dict[str, object]:
    return {name: value for name, value in options(model, False).items() if name != "generator"}


def naive_mean(windows: list[torch.Tensor], stride: int) -> torch.Tensor:
    """Every column's mean over the windows that hold it, one column at a time; windows [h, L, C]."""
    length = windows[0].shape[1]
    columns = []
    for x in range(length + stride * (len(windows) - 1)):
        held = [(w, x - k * stride) for k, w in enumerate(windows) if 0 <= x - k * stride < length]
        shares = [min((j + 0.5) * 2 / length, 2 - (j + 0.5) * 2 / length) for _, j in held]
        columns.append(sum(s * w[:, j] for s, (w, j) in zip(shares, held, strict=True)) / sum(shares))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_windows_are_joined_by_their_weights(stride):
    windows = torch.randn(3, 4, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(joined(windows, stride)[0], naive_mean(list(windows), stride), atol=1e-12, rtol=0)
    wide = torch.randn(1, 4, 6 + 2 * stride, 2, dtype=torch.float64)
    cut = torch.cat([wide[:, :, k * stride : k * stride + 6] for k in range(3)])
    torch.testing.assert_close(joined(cut, stride), wide, atol=1e-12, rtol=0, msg="windows of one picture are it")


@models
def test_a_panorama_is_a_loop_of_one_s_own_over_windows(model, monkeypatch):
    """Each step: the velocity of every window by itself, their weighted mean, an Euler step of the whole."""
    pipe = MODELS[model]()
    found: list[torch.Tensor] = []
    monkeypatch.setattr(type(host_of(pipe)), "decoded", lambda self, latents, *size: found.append(latents) or [size])
    assert panorama(pipe, PROMPTS, seed=3, **call(model)) == (48, 128)
    host = host_of(pipe)
    packed, fine = hasattr(pipe, "_pack_latents"), host.unit // pipe.vae_scale_factor
    noise = torch.randn(1, pipe.vae.config.latent_channels, 6 * fine, 16 * fine, generator=torch.manual_seed(3))
    rows, window, stride = (6, 8, 4) if packed else (6 * fine, 8 * fine, 4 * fine)

    def grid(x: torch.Tensor) -> torch.Tensor:
        return x[0].unflatten(0, (rows, -1)) if packed else x[0].permute(1, 2, 0)

    def latents(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, 1)[None] if packed else x.permute(2, 0, 1)[None]

    z = grid(pipe._pack_latents(noise, 1, *noise.shape[1:]) if packed else noise)
    sigmas = pipe.scheduler.sigmas
    conditions = [host.condition(prompt, 48, 64, max_sequence_length=12) for prompt in PROMPTS]
    with torch.no_grad():
        for now, then in itertools.pairwise(sigmas):
            parts = [z[:, k * stride : k * stride + window] for k in range(3)]
            moved = [grid(host.velocity(latents(p), now, c)) for p, c in zip(parts, conditions, strict=True)]
            z = z + (then - now) * naive_mean(moved, stride)
    torch.testing.assert_close(grid(found[0]), z, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("make", "stock"), [(tiny_flux, FluxPipeline), (tiny_sd3, StableDiffusion3Pipeline)], ids=["FLUX", "SD3"]
)
def test_a_recipe_s_panorama_replays_under_a_control(make, stock):
    pipe = make(cls=controlled(stock))
    numbers = {**CALL, **({"guidance_scale": 3.0} if make is tiny_sd3 else {})}
    recipe = Recipe(prompts=PROMPTS, panorama=0.25, seed=1, **numbers)
    plain, again = generate(pipe, recipe), generate(pipe, recipe)
    assert plain.pictures[0].size == (64 + 2 * 48, 48)
    assert again.recipe.same_as(plain.recipe) == 1
    aligned = generate(pipe, recipe.model_copy(update={"control": (AlignedStyle(additive="none"),)}))
    assert aligned.recipe.same_as(plain.recipe) == 0


@pytest.mark.parametrize(
    ("prompts", "overlap", "said"),
    [(("a fox",), 0.5, "needs two prompts or more"), (PROMPTS, 0.01, "leaves no column"), (PROMPTS, 0.99, "no column")],
)
def test_what_is_no_panorama(pipe, prompts, overlap, said):
    with pytest.raises(ControlError, match=said):
        panorama(pipe, prompts, overlap=overlap, **CALL)


def test_a_wide_picture_is_shown_wide():
    """By its shorter side, so that it is no strip of 192 px."""
    wide, square = (contact_sheet([SheetRow("", [Image.new("RGB", size)], [""])]) for size in ((144, 64), (64, 64)))
    assert wide.width - square.width > 192
