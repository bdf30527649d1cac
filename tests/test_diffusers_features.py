"""Controls beside what diffusers users combine them with: LoRA, img2img, offload, compile, bf16, fused QKV, schedulers."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import FlowMatchHeunDiscreteScheduler, FluxImg2ImgPipeline, FluxInpaintPipeline
from peft import LoraConfig
from PIL import Image
from tiny import tiny_flux
from torch._dynamo.testing import CompileCounter

from attnctrl import AlignedStyle, ControlError, NaiveSharing, Reference, Where, attached
from attnctrl.architecture import ReferenceRow
from attnctrl.processors.flux import FluxArchitecture

CONTROL = AlignedStyle()


def with_lora(pipe):
    torch.manual_seed(7)
    targets = ["to_q", "to_k", "to_v", "add_k_proj", "proj_mlp"]
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    return pipe


def test_lora_acts_under_a_control_and_off_stays_bit_equal(pipe, latents_of):
    with attached(pipe, CONTROL):
        without = latents_of(pipe)
    stock = latents_of(with_lora(pipe))
    with attached(pipe, AlignedStyle(strength=0)):
        assert torch.equal(latents_of(pipe), stock)
    with attached(pipe, CONTROL):
        shared = latents_of(pipe)
    assert (shared - without).abs().max() > 1e-2
    assert (shared[1:] - stock[1:]).abs().max() > 1e-2
    torch.testing.assert_close(shared[:1], stock[:1], atol=1e-5, rtol=1e-5)
    pipe.transformer.disable_adapters()
    with attached(pipe, CONTROL):
        torch.testing.assert_close(latents_of(pipe), without)


@pytest.mark.parametrize("cls", [FluxImg2ImgPipeline, FluxInpaintPipeline])
def test_img2img_and_inpaint(cls, latents_of):
    pipe = tiny_flux()
    other = cls(**pipe.components)
    other.set_progress_bar_config(disable=True)
    start = [Image.new("RGB", (64, 64), c) for c in ("red", "green", "blue")]
    extra = {"image": start, "strength": 0.6}
    if cls is FluxInpaintPipeline:
        extra["mask_image"] = [Image.new("L", (64, 64), 255)] * 3

    def run():
        return latents_of(other, n=3, steps=5, **extra)

    stock = run()
    with attached(other, AlignedStyle(strength=0)):
        assert torch.equal(run(), stock)
    with attached(other, CONTROL):
        shared = run()
    torch.testing.assert_close(shared[:1], stock[:1], atol=1e-5, rtol=1e-5)
    assert (shared[1:] - stock[1:]).abs().amax((1, 2)).min() > 1e-2
    picture = Reference(picture=Image.new("RGB", (64, 64), "gold"))
    with attached(other, AlignedStyle(reference=picture, where=Where(steps="0-0"))) as session:
        first_step = run()
        assert session._clock.last == 4
        assert session.acted == [1], "the steps are counted from where img2img begins"
    assert (first_step - stock).abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(run(), stock)


def model_offload(pipe):
    hook = None
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        _, hook = cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)


def sequential_offload(pipe):
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        cpu_offload(getattr(pipe, name), torch.device("cpu"), offload_buffers=True)


@pytest.mark.parametrize("offload", [model_offload, sequential_offload])
def test_offload(offload, latents_of):
    pipe = tiny_flux()
    picture = AlignedStyle(reference=Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin"))
    with attached(pipe, CONTROL):
        expected = latents_of(pipe)
    with attached(pipe, picture):
        expected_picture = latents_of(pipe, cfg=2.0)
    stock = latents_of(pipe)
    offload(pipe)
    with attached(pipe, CONTROL):
        assert torch.equal(latents_of(pipe), expected)
    with attached(pipe, picture):
        assert torch.equal(latents_of(pipe, cfg=2.0), expected_picture)
    assert torch.equal(latents_of(pipe), stock)


def test_fused_projections(pipe, latents_of):
    with attached(pipe, CONTROL):
        expected = latents_of(pipe)
    pipe.transformer.fuse_qkv_projections()
    stock = latents_of(pipe)
    with attached(pipe, AlignedStyle(strength=0)):
        assert torch.equal(latents_of(pipe), stock)
    with attached(pipe, CONTROL):
        torch.testing.assert_close(latents_of(pipe), expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_runs_and_off_is_bit_equal(latents_of):
    pipe = tiny_flux().to(torch.bfloat16)
    stock = latents_of(pipe)
    with attached(pipe, AlignedStyle(strength=0)):
        assert torch.equal(latents_of(pipe), stock)
    picture = AlignedStyle(strength=0.7, reference=Reference(picture=Image.new("RGB", (64, 64), "gold")))
    for control in (CONTROL, picture):
        with attached(pipe, control):
            result = latents_of(pipe)
        assert result.dtype == torch.bfloat16
        assert torch.isfinite(result).all()


def test_a_solver_with_two_calls_a_step(latents_of):
    pipe = tiny_flux()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=1.0)
    sigmas = {"sigmas": None}
    pipe.scheduler.set_timesteps = with_sigmas(pipe.scheduler.set_timesteps)
    stock = latents_of(pipe, **sigmas)
    with attached(pipe, CONTROL) as session:
        shared = latents_of(pipe, **sigmas)
        assert session.calls == 5
    torch.testing.assert_close(shared[:1], stock[:1], atol=1e-4, rtol=1e-4)
    assert (shared[1:] - stock[1:]).abs().max() > 1e-2


def with_sigmas(set_timesteps):
    def call(num_inference_steps=None, device=None, sigmas=None, mu=None):
        return set_timesteps(num_inference_steps or len(sigmas), device=device)

    return call


def test_picture_reference_is_refused_where_channels_differ(latents_of):
    pipe = tiny_flux()
    control = AlignedStyle(reference=Reference(picture=Image.new("RGB", (64, 64), "gold")))
    wide = {"hidden_states": torch.zeros(1, 16, 24), "encoder_hidden_states": torch.zeros(1, 5, 16),
            "pooled_projections": torch.zeros(1, 16), "timestep": torch.ones(1), "txt_ids": torch.zeros(5, 3),
            "img_ids": torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.), torch.arange(4.), indexing="ij"), -1).reshape(16, 3)}  # fmt: skip
    pipe.scheduler.set_timesteps(2, mu=0.5)
    with (
        torch.no_grad(),
        pytest.raises(ControlError, match="16 channels and FluxPipeline wants 24"),
        attached(pipe, control),
    ):
        pipe.transformer(**wide)


def test_references_get_no_residuals_and_the_negative_text():
    """ControlNet's residuals and IP-Adapter's embeddings are zero in the added rows; the second pass keeps its own text."""
    one = torch.ones
    row = ReferenceRow(one(1, 6, 16), 3 * one(1, 6, 16), 5 * one(1, 4, 8), 5 * one(1, 8))
    arguments = {
        "hidden_states": 7 * one(2, 6, 16), "encoder_hidden_states": 9 * one(2, 4, 8), "pooled_projections": 9 * one(2, 8),
        "timestep": 0.5 * one(2), "guidance": None, "img_ids": one(2, 3), "controlnet_block_samples": [one(2, 6, 16)],
        "joint_attention_kwargs": {"ip_adapter_image_embeds": [one(2, 1, 4)], "scale": 0.5},
    }  # fmt: skip
    wide = FluxArchitecture().widen(arguments, [row], torch.tensor(0.25), call=0)
    assert wide["hidden_states"][:, 0, 0].tolist() == [0.25 * 3 + 0.75, 7, 7]
    assert wide["encoder_hidden_states"][:, 0, 0].tolist() == [5, 9, 9]
    assert wide["controlnet_block_samples"][0][:, 0, 0].tolist() == [0, 1, 1]
    assert wide["joint_attention_kwargs"]["ip_adapter_image_embeds"][0][:, 0, 0].tolist() == [0, 1, 1]
    assert wide["joint_attention_kwargs"]["scale"] == 0.5
    assert wide["img_ids"] is arguments["img_ids"]
    assert len(wide["timestep"]) == 3
    negative = FluxArchitecture().widen(arguments, [row], torch.tensor(0.25), call=1)
    assert negative["encoder_hidden_states"][:, 0, 0].tolist() == [9, 9, 9]
    assert arguments["hidden_states"].shape[0] == 2, "the caller's arguments are not touched"


@pytest.mark.parametrize(
    "control",
    [AlignedStyle(), AlignedStyle(strength=0.5, where=Where(steps="0-7")), NaiveSharing(where=Where(heads="H1")),
     AlignedStyle(key_scale={"start": 1.2, "end": 1.0}, reference=Reference(picture=Image.new("RGB", (64, 64), "gold")))],
    ids=["aligned", "half, eight steps", "one head", "falling, picture"],
)  # fmt: skip
def test_compiled_blocks_make_no_graph_per_step(control, latents_of):
    """fullgraph raises on any break; after twelve steps no step adds a graph, and there are at most stock's, on and off."""

    def compiled():
        torch._dynamo.reset()
        pipe, counter = tiny_flux(), CompileCounter()
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
        return pipe, counter

    stock, stock_counter = compiled()
    latents_of(stock, steps=2)
    with attached(tiny := tiny_flux(), control):
        expected = latents_of(tiny, steps=12)
    pipe, counter = compiled()
    with attached(pipe, control):
        torch.testing.assert_close(latents_of(pipe, steps=12), expected, atol=1e-4, rtol=1e-4)
        graphs = counter.frame_count
        latents_of(pipe, steps=12)
    assert counter.frame_count == graphs
    assert graphs <= stock_counter.frame_count * (1 if control.where.steps == "all" else 2)
    torch._dynamo.reset()
