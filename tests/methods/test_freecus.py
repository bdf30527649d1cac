"""FreeCus on FLUX against the dense reference, and what surrounds it: captions, masks, noise levels, composition."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from references.attention import apply_rope
from references.flux import image_ids, reference_forward, stock_rounding_site
from references.freecus import Subject, calculate_mu, freecus_attention, reference_sigma
from tiny import tiny_flux, tiny_sd3

from attnctrl import AlignedStyle, ControlError, Reference, Where, attached
from attnctrl.guests import reversed_odds
from attnctrl.processors import FreeCus, described

GRID, TEXT = (4, 6), 9
EVERY = Where(blocks="all")


def picture(color: str = "gold", **more) -> Reference:
    return Reference(picture=Image.new("RGB", (48, 32), color), **more)


def half_mask(size: tuple[int, int] = (48, 32)) -> Image.Image:
    mask = Image.new("RGB", size, "black")
    mask.paste("white", (0, 0, size[0] // 2, size[1]))
    return mask


def test_one_call_on_flux_equals_the_naive_one():
    """Two subjects: the foreground of one, all of the other at half strength; the reference is cleaner than the step."""
    first, second = picture(caption="a coin", mask=half_mask()), picture("navy", caption="a sea", seed=3, strength=0.5)
    g = torch.Generator().manual_seed(5)
    call = {
        "hidden_states": torch.randn(3, GRID[0] * GRID[1], 16, generator=g).double(),
        "encoder_hidden_states": torch.randn(3, TEXT, 16, generator=g).double(),
        "pooled_projections": torch.randn(3, 16, generator=g).double(),
        "timestep": torch.full((3,), 0.7).double(),
    }
    places = {"img_ids": image_ids(*GRID), "txt_ids": torch.zeros(TEXT, 3)}
    pipe = tiny_flux()
    pipe.transformer.double()
    pipe.vae.double()
    pipe.scheduler.set_timesteps(4, mu=0.6)
    pipe.scheduler.set_begin_index(1)
    with torch.no_grad(), attached(pipe, FreeCus(reference=(first, second), where=EVERY)):
        ours = pipe.transformer(**call, **places, return_dict=False)[0]

    sigma = reference_sigma(float(pipe.scheduler.sigmas[1]), calculate_mu(GRID[0] * GRID[1], pipe.scheduler.config))
    rows = []
    for one in (first, second):
        pixels = pipe.image_processor.preprocess(one.picture, height=32, width=48).double()
        with torch.no_grad():
            latent = pipe.vae.encode(pixels).latent_dist.mode()
            text, pooled, _ = pipe.encode_prompt([one.caption], None, max_sequence_length=TEXT)
        latent = (latent - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        latent = pipe._pack_latents(latent, 1, *latent.shape[1:])
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(one.seed)).double()
        rows.append((sigma * noise + (1 - sigma) * latent, text.double(), pooled.double(), call["timestep"][:1]))
    wide = {name: torch.cat([row[i] for row in rows] + [value]) for i, (name, value) in enumerate(call.items())}
    foreground = torch.tensor([i for i in range(GRID[0] * GRID[1]) if i % GRID[1] < 3])
    subjects = [Subject(0, foreground), Subject(1, torch.arange(GRID[0] * GRID[1]), math.log(0.5))]

    def site(index, q, k, v, cos, sin, text):
        def rotate(x):
            return apply_rope(x, cos, sin, torch.float32)

        return freecus_attention(q, k, v, subjects, text, 1.1, rotate=rotate)

    with torch.no_grad():
        expected = reference_forward(pipe.transformer, **wide, **places, site_fn=site)[2:]
        plain = reference_forward(pipe.transformer, **call, **places, site_fn=stock_rounding_site)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
def test_the_reversed_shift_is_the_schedule_with_minus_mu(make):
    scheduler = make().scheduler
    mu = calculate_mu(64, scheduler.config)
    assert reversed_odds(scheduler, 64) == pytest.approx(math.exp(-2 * mu))
    reference = picture()
    assert FreeCus(reference=reference).references()[0].noise == "finer"
    assert FreeCus(reference=picture(noise="step")).references()[0].noise == "step"


def test_captions_are_appended_and_made_by_any_function():
    control = FreeCus(reference=(picture(caption="a gold coin"), picture()))
    assert control.amend("a table") == "a table, a gold coin"
    assert AlignedStyle().amend("a table") == "a table"
    words = described(picture(), lambda image: f"{image.width} " + "word " * 30)
    assert words.caption.split() == ["48", *["word"] * 19]


def test_masks_choose_tokens_and_bad_ones_are_refused():
    assert picture(mask=half_mask()).foreground((4, 6)) == [r * 6 + c for r in range(4) for c in range(3)]
    assert picture(mask=half_mask()).foreground((4, 4)) == [r * 4 + c for r in range(4) for c in range(2)]
    assert picture().foreground((4, 6)) is None
    with pytest.raises(ValidationError, match="black all over"):
        picture(mask=Image.new("RGB", (48, 32)))
    dot = Image.new("RGB", (48, 32))
    dot.paste("white", (0, 0, 1, 1))
    with pytest.raises(ControlError, match="leaves no token of the 4 x 6 grid"):
        picture(mask=dot).foreground((4, 6))
    with pytest.raises(ValidationError, match="48 x 32 px and 32 x 32 px"):
        picture(mask=half_mask((32, 32)))
    with pytest.raises(ValidationError, match="reference"):
        FreeCus()
    with pytest.raises(ValidationError, match="needs a reference"):
        FreeCus(reference=())


def test_a_masked_style_reference_gives_only_its_foreground(pipe, latents_of):
    """AdaIN and sharing see the mask's tokens: what is outside of it does not matter to the targets' attention."""
    left = Image.new("RGB", (64, 64), "gold")
    other = left.copy()
    other.paste("navy", (32, 0, 64, 64))
    mask = half_mask((64, 64))
    runs = []
    for image, chosen in ((left, mask), (other, mask), (other, None)):
        with attached(pipe, AlignedStyle(reference=Reference(picture=image, mask=chosen))):
            runs.append(latents_of(pipe))
    near, far = (runs[0] - runs[1]).abs().mean(), (runs[1] - runs[2]).abs().mean()
    assert 0 < near < far


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
def test_off_is_stock_and_strength_fades_in(make, latents_of):
    pipe = make()
    stock = latents_of(pipe)
    distances = []
    for strength in (0, 0.01, 1.0):
        with attached(pipe, FreeCus(strength=strength, where=EVERY, reference=picture(mask=half_mask()))):
            distances.append((latents_of(pipe) - stock).abs().max())
    assert distances[0] == 0
    assert 0 < distances[1] < 0.5 * distances[2]


def test_subject_and_style_go_together(pipe, latents_of):
    """FreeCus claims the text keys, AlignedGen the image features: they compose, and two FreeCus do not."""
    control = FreeCus(reference=picture(mask=half_mask()))
    with attached(pipe, [AlignedStyle(), control]):
        both = latents_of(pipe)
    with attached(pipe, control):
        alone = latents_of(pipe)
    assert (both - alone).abs().max() > 1e-2
    with pytest.raises(ControlError, match="both set the text keys"), attached(pipe, [control, control.model_copy()]):
        pass
