"""A reference of one token: no deviation to take over, and no NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_flux, tiny_sd3

from attnctrl import AlignedStyle, FreeCus, NaiveSharing, Reference, StyleAligned, Where, attached

MODELS = {
    "FLUX": tiny_flux,
    "SD3": tiny_sd3,
    "SD3.5": lambda: tiny_sd3(qk_norm="rms_norm", dual=(0, 1)),
}
EVERY = Where(blocks="all")
CONTROLS: dict[str, Any] = {
    "AlignedGen": lambda **more: AlignedStyle(**more),
    "AlignedGen, every block, half": lambda **more: AlignedStyle(where=EVERY, strength=0.5, **more),
    "AlignedGen, two heads": lambda **more: AlignedStyle(where=Where(heads="H1 H3"), **more),
    "StyleAligned": lambda **more: StyleAligned(**more),
    "StyleAligned, values too": lambda **more: StyleAligned(adain_values=True, **more),
    "naive": lambda **more: NaiveSharing(**more),
    "FreeCus": lambda **more: FreeCus(where=EVERY, **more),
    "FreeCus with AdaIN": lambda **more: FreeCus(where=EVERY, adain_queries=True, adain_keys=True, **more),
}
models = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
both_models = pytest.mark.parametrize("build", [tiny_flux, tiny_sd3], ids=["FLUX", "SD3"])
controls = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
scenery = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 40).convert("RGB")


def spot() -> Image.Image:
    """White on one token of 8 x 8, black elsewhere."""
    mask = Image.new("RGB", (64, 64), "black")
    mask.paste("white", (24, 16, 32, 24))
    return mask


def check(pipe: Any, control: Any, latents_of: Any, leads: int = 0, **more: Any) -> None:
    guidance = {} if hasattr(pipe.transformer, "x_embedder") else {"guidance_scale": 2.0}
    stock = latents_of(pipe, steps=2, **guidance, **more)
    with attached(pipe, control):
        result = latents_of(pipe, steps=2, **guidance, **more)
    assert torch.isfinite(result).all()
    assert result.abs().max() < 20 * stock.abs().max()
    assert (result - stock).abs().flatten(1).amax(1)[leads:].min() > 1e-3, "it acts"


@models
@controls
def test_a_mask_of_one_token(control, build, latents_of):
    mask = spot()
    reference = Reference(picture=scenery, mask=mask, caption="a cave")
    assert len(reference.foreground((8, 8))) == 1
    check(build(), control(reference=reference), latents_of)


@both_models
@controls
def test_one_of_two_references_has_one_token(control, build, latents_of):
    small, whole = Reference(picture=scenery, mask=spot()), Reference(picture=scenery, seed=1)
    for references in ((small, whole), (whole, small)):
        check(build(), control(reference=references), latents_of)


@both_models
@controls
def test_pictures_of_one_token(control, build, latents_of):
    """8 x 8 px: the reference has one token, and so has each picture of the set."""
    reference = Reference(picture=Image.new("RGB", (8, 8), "gold"), caption="a coin")
    check(build(), control(reference=reference), latents_of, height=8, width=8)


@both_models
@pytest.mark.parametrize("name", [name for name in CONTROLS if not name.startswith("FreeCus")])
def test_a_leader_of_one_token(name, build, latents_of):
    check(build(), CONTROLS[name](), latents_of, leads=1, height=8, width=8)


@both_models
def test_sets_of_one_token_in_which_all_read_all(build, latents_of):
    check(build(), StyleAligned(share="all"), latents_of, height=8, width=8)


@both_models
@pytest.mark.parametrize("size", [(8, 64), (64, 8)], ids=["a row", "a column"])
def test_a_single_row_or_column_of_tokens(size, build, latents_of):
    height, width = size
    check(build(), AlignedStyle(where=EVERY), latents_of, leads=1, height=height, width=width)
