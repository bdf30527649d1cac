"""Rows that controls bring: as many as announced, in every half of the batch, and none in the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_flux, tiny_sd3

from attnctrl import NAG, AlignedStyle, FreeCus, NaiveSharing, Reference, SoftPAG, StyleAligned, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
SCENERY = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 40).convert("RGB")
CAVE = Reference(picture=SCENERY, caption="a cave")
COIN = Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin", seed=3)
MODELS = {"FLUX": tiny_flux, "SD3": tiny_sd3}


def batches(pipe: Any, control: Any, latents_of: Any, images: int = 1, **more: Any) -> tuple[set[int], torch.Tensor]:
    """The batch sizes that a block of the transformer saw, and the result."""
    seen: set[int] = set()

    def watch(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.add(len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]))

    hook = pipe.transformer.transformer_blocks[1].register_forward_pre_hook(watch, with_kwargs=True)
    many = {"num_images_per_prompt": images, "seeds": list(range(2 * images))} if images > 1 else {}
    try:
        with attached(pipe, control, images_per_prompt=images):
            result = latents_of(pipe, n=2, steps=2, **many, **more)
    finally:
        hook.remove()
    return seen, result


ROWS = {
    # control, images per prompt, rows added on FLUX, on SD3
    "a picture, copied": (AlignedStyle(reference=CAVE, additive="copy"), 1, 1, 1),
    "a picture, moved": (AlignedStyle(reference=CAVE, additive="move"), 1, 1, 1),
    "a picture, left": (AlignedStyle(reference=CAVE, additive="none"), 1, 1, 1),
    "two pictures, copied": (AlignedStyle(reference=(CAVE, COIN), additive="copy"), 1, 2, 2),
    "a picture, several images": (AlignedStyle(reference=CAVE, additive="copy"), 2, 1, 1),
    "the first, copied": (AlignedStyle(additive="copy"), 1, 0, 1),
    "the first, moved": (AlignedStyle(additive="move"), 1, 0, 0),
    "the first, left": (AlignedStyle(additive="none"), 1, 0, 0),
    "the firsts of several images, copied": (AlignedStyle(additive="copy"), 2, 0, 2),
    "one picture for two controls": (
        [AlignedStyle(reference=CAVE), NaiveSharing(reference=CAVE, where=Where(blocks="0"))], 1, 1, 2),  # at two places
    "a picture, copied, and a subject": ([AlignedStyle(reference=CAVE), FreeCus(reference=COIN)], 1, 2, 2),
    "the first, copied, by two controls": (
        [AlignedStyle(), StyleAligned(shift=(0, 1), where=Where(blocks="0"))], 1, 0, 1),
    "the first, copied, and moved elsewhere": (
        [AlignedStyle(), StyleAligned(shift=(1, 0), where=Where(blocks="0"))], 1, 0, 2),
    "a picture and NAG": ([AlignedStyle(reference=CAVE), NAG(prompt="an owl")], 1, 3, 3),
    "off": ([AlignedStyle(reference=CAVE, strength=0), NAG(strength=0)], 1, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("control", "images", "flux", "sd3"), ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("guided", [False, True], ids=["", "CFG"])
def test_a_block_sees_as_many_rows_as_are_announced(control, images, flux, sd3, guided, model, latents_of):
    """SD3's CFG doubles the batch, and each half has its own added rows; FLUX's true CFG runs the passes apart."""
    pipe, added, halves = MODELS[model](), flux if model == "FLUX" else sd3, 2 if guided and model == "SD3" else 1
    scale = {"cfg": 2.0 if guided else 1.0} if model == "FLUX" else {"guidance_scale": 2.0 if guided else 1.0}
    seen, result = batches(pipe, control, latents_of, images, **scale)
    assert seen == {halves * (added + 2 * images)}
    assert len(result) == 2 * images
    assert torch.isfinite(result).all()


def test_a_perturbed_pass_has_the_added_rows_of_one_half(latents_of):
    control = [AlignedStyle(reference=CAVE), SoftPAG(where=Where(heads="L1H1"))]
    seen, result = batches(tiny_sd3(), control, latents_of, guidance_scale=2.0)
    assert seen == {2 * (1 + 2), 1 + 2}
    assert len(result) == 2


@pytest.mark.parametrize("additive", ["copy", "move"])
def test_a_pictures_row_stands_aside_however_it_is_moved(additive, latents_of):
    """Nobody sees the picture's own row, so that a copy of it would be a row for nothing: both are the same picture."""
    pipe = tiny_sd3()
    left, moved = (
        batches(pipe, AlignedStyle(reference=CAVE, additive=how), latents_of)[1] for how in ("none", additive)
    )
    assert (left - moved).abs().flatten(1).amax(1).min() > 1e-2, "the shift acts"
    again = batches(pipe, AlignedStyle(reference=CAVE, additive="copy"), latents_of)[1]
    assert torch.equal(moved, again)
