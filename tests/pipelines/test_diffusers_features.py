"""What the compatibility matrix (test_matrix.py) cannot say in a cell: counts of calls, steps and graphs, rows added."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from matrix import heun, lora
from PIL import Image
from tiny import tiny_flux, tiny_sd3
from tiny_siblings import masks, pictures
from torch._dynamo.testing import CompileCounter

from attnctrl import AlignedStyle, ControlError, NaiveSharing, Reference, Where, attached
from attnctrl.batch import widened
from attnctrl.guests import CopyRow, PictureRow
from attnctrl.layout import Step
from attnctrl.processors.flux import FluxEdge

GOLD = Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin")


@pytest.mark.parametrize("tiny", [tiny_flux, tiny_sd3])
def test_lora_can_be_switched_off_under_a_control(tiny, latents_of):
    pipe = tiny()
    with attached(pipe, AlignedStyle()):
        without = latents_of(pipe)
    lora(pipe)
    with attached(pipe, AlignedStyle()):
        assert (latents_of(pipe) - without).abs().max() > 1e-2
        pipe.transformer.disable_adapters()
        torch.testing.assert_close(latents_of(pipe), without)


@pytest.mark.parametrize("cls", [FluxImg2ImgPipeline, FluxInpaintPipeline])
def test_steps_are_counted_from_where_img2img_begins(cls, latents_of):
    pipe = tiny_flux(cls=cls)
    more = {"mask_image": masks(3)} if cls is FluxInpaintPipeline else {}

    def run():
        return latents_of(pipe, steps=5, image=pictures(3), strength=0.6, **more)

    stock = run()
    with attached(pipe, AlignedStyle(reference=GOLD, where=Where(steps="0-0"))) as session:
        first_step = run()
        assert session.calls == 3
        assert session.acted == [1]
    assert (first_step - stock).abs().amax((1, 2)).min() > 1e-3


def test_a_solver_with_two_calls_a_step(latents_of):
    heun(pipe := tiny_flux())
    stock = latents_of(pipe)
    with attached(pipe, AlignedStyle()) as session:
        shared = latents_of(pipe)
        assert session.calls == 5
    assert (shared[1:] - stock[1:]).abs().max() > 1e-2


def test_picture_reference_is_refused_where_the_input_has_fewer_channels():
    pipe = tiny_flux()
    ids = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).reshape(
        16, 3
    )
    narrow = {"hidden_states": torch.zeros(1, 16, 8), "encoder_hidden_states": torch.zeros(1, 5, 16),
              "pooled_projections": torch.zeros(1, 16), "timestep": torch.ones(1), "txt_ids": torch.zeros(5, 3), "img_ids": ids}  # fmt: skip
    pipe.scheduler.set_timesteps(2, mu=0.5)
    with (
        torch.no_grad(),
        pytest.raises(ControlError, match=r"input of FluxPipeline have the shapes 16 x 16 and 16 x 8; use a reference"),
        attached(pipe, AlignedStyle(reference=GOLD)),
    ):
        pipe.transformer(**narrow)


def test_added_rows_get_no_residuals_and_the_negative_text():
    """ControlNet's residuals and IP-Adapter's embeddings are zero in a picture's row; negative halves keep their text."""
    one = torch.ones
    batched, now = FluxEdge.batched, Step(0, 1, torch.tensor(0.25))
    row = PictureRow(one(1, 6, 16), 3 * one(1, 6, 16), 5 * one(1, 4, 8), 5 * one(1, 8))
    arguments = {
        "hidden_states": 7 * one(2, 6, 24), "encoder_hidden_states": 9 * one(2, 4, 8), "pooled_projections": 9 * one(2, 8),
        "timestep": 0.5 * one(2), "guidance": None, "img_ids": one(2, 3), "controlnet_block_samples": [one(2, 6, 16)],
        "joint_attention_kwargs": {"ip_adapter_image_embeds": [one(2, 1, 4)], "scale": 0.5},
    }  # fmt: skip
    wide = widened(batched, arguments, [row], now, (True,))
    assert wide["hidden_states"][:, 0, 0].tolist() == [0.25 * 3 + 0.75, 7, 7]
    assert wide["hidden_states"][:, 0, 23].tolist() == [7, 7, 7], "further channels are the first row's"
    assert wide["encoder_hidden_states"][:, 0, 0].tolist() == [5, 9, 9]
    assert wide["controlnet_block_samples"][0][:, 0, 0].tolist() == [0, 1, 1]
    assert wide["joint_attention_kwargs"]["ip_adapter_image_embeds"][0][:, 0, 0].tolist() == [0, 1, 1]
    assert wide["joint_attention_kwargs"]["scale"] == 0.5
    assert wide["img_ids"] is arguments["img_ids"]
    assert len(wide["timestep"]) == 3
    negative = widened(batched, arguments, [row], now, (False,))
    assert negative["encoder_hidden_states"][:, 0, 0].tolist() == [9, 9, 9]
    several = {**arguments, "controlnet_block_samples": [torch.tensor([1.0, 2.0])]}
    halves = widened(batched, several, [row, CopyRow(0)], now, (False, True))
    assert halves["encoder_hidden_states"][:, 0, 0].tolist() == [9, 9, 9, 5, 9, 9]
    assert halves["controlnet_block_samples"][0].tolist() == [0, 1, 1, 0, 2, 2]
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
