"""Off means off and after means gone: bit-equal to stock diffusers, whatever the call."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from tiny import tiny_flux

from attnctrl import AlignedStyle, ControlledFluxPipeline, Reference, StyleAligned, Where, attached
from attnctrl.processors.flux import ControlledFluxAttnProcessor

EVERYWHERE = Where(blocks="all")
CALLS = {
    "plain": {},
    "true CFG": {"cfg": 3.0},
    "one step": {"steps": 1},
    "seven steps": {"steps": 7},
    "wide": {"width": 96, "height": 48},
    "tall, true CFG": {"width": 32, "height": 80, "cfg": 2.0},
    "single picture": {"n": 1},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("guidance", [False, True], ids=["", "distilled"])
def test_zero_strength_is_bit_equal_with_processors_installed(call, guidance, latents_of):
    pipe = tiny_flux(guidance)
    stock = latents_of(pipe, **call)
    with attached(pipe, [AlignedStyle(strength=0, where=EVERYWHERE), StyleAligned(strength=0)]):
        kinds = {type(p) for p in pipe.transformer.attn_processors.values()}
        assert kinds == {ControlledFluxAttnProcessor}
        assert torch.equal(latents_of(pipe, **call), stock)


def test_steps_outside_the_window_are_stock(pipe, latents_of):
    stock = latents_of(pipe)
    with pytest.warns(UserWarning, match="never acted"), attached(pipe, AlignedStyle(where=Where(steps="50-60"))):
        assert torch.equal(latents_of(pipe), stock)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_everything_is_back_after_leaving(cfg, pipe, latents_of):
    before = {name: id(p) for name, p in pipe.transformer.attn_processors.items()}
    stock = latents_of(pipe, cfg=cfg)
    with attached(pipe, AlignedStyle()):
        assert not torch.equal(latents_of(pipe, cfg=cfg), stock)
    assert {name: id(p) for name, p in pipe.transformer.attn_processors.items()} == before
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(latents_of(pipe, cfg=cfg), stock)


def test_everything_is_back_after_an_exception(pipe, latents_of):
    before = list(pipe.transformer.attn_processors.values())
    stock = latents_of(pipe)

    def fail(*args):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), attached(pipe, AlignedStyle()):
        latents_of(pipe, callback_on_step_end=fail)
    assert all(a is b for a, b in zip(before, pipe.transformer.attn_processors.values(), strict=True))
    assert torch.equal(latents_of(pipe), stock)


def test_two_calls_in_one_session_are_the_same_as_two_sessions(pipe, latents_of):
    control = AlignedStyle()
    with attached(pipe, control):
        first, other, again = latents_of(pipe), latents_of(pipe, n=4, width=96, steps=1), latents_of(pipe)
    with attached(pipe, control):
        alone = latents_of(pipe, n=4, width=96, steps=1)
    assert torch.equal(first, again)
    assert torch.equal(other, alone)


def test_one_step_calls_in_a_row_do_not_confuse_the_passes(pipe, latents_of):
    picture = Reference(picture="data:image/png;base64," + PIXEL, caption="a red thing")
    control = AlignedStyle(reference=picture)
    with attached(pipe, control):
        runs = [latents_of(pipe, n=2, steps=1, cfg=cfg) for cfg in (1.0, 3.0, 3.0, 1.0)]
    assert torch.equal(runs[1], runs[2])
    assert torch.equal(runs[0], runs[3])


def test_controlled_pipeline_without_control_is_stock(latents_of):
    stock, ours = tiny_flux(), tiny_flux(cls=ControlledFluxPipeline)
    for call in CALLS.values():
        assert torch.equal(latents_of(ours, **call), latents_of(stock, **call))
        off = AlignedStyle(strength=0)
        assert torch.equal(latents_of(ours, control=off, **call), latents_of(stock, **call))


def test_saved_folder_is_loaded_by_stock_diffusers(tmp_path, latents_of):
    ours = tiny_flux(cls=ControlledFluxPipeline)
    ours.settings = type(ours.settings)(height=48, width=64, max_sequence_length=12)
    ours.save_pretrained(tmp_path / "model")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(stock) is FluxPipeline
    again = ControlledFluxPipeline.from_pretrained(tmp_path / "model")
    stock.set_progress_bar_config(disable=True)
    again.set_progress_bar_config(disable=True)
    assert again.settings == ours.settings
    assert torch.equal(latents_of(stock), latents_of(again))
    image = again(prompt=["a fox"], num_inference_steps=1).images[0]
    assert image.size == (64, 48)


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGUlEQVR4nGP8z0AaYCJR/aiGUQ1DSAMAQC4BH2bjRnMAAAAASUVORK5CYII="
