"""Sessions: who may attach, what is refused, what is said."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tiny import clip_parts, tiny_flux, tiny_vae

from attnctrl import (
    AlignedStyle,
    ConflictError,
    ControlError,
    NaiveSharing,
    NoEffectWarning,
    Reference,
    SoftPAG,
    StyleAligned,
    Where,
    attached,
    controlled,
)


def test_batch_of_one_is_refused_with_the_way_out(pipe, latents_of):
    with (
        pytest.raises(ControlError, match=r"two or more prompts, or a reference picture"),
        attached(pipe, AlignedStyle()),
    ):
        latents_of(pipe, n=1)
    picture = Reference(picture=Image.new("RGB", (64, 64), "red"))
    with attached(pipe, AlignedStyle(reference=picture)):
        assert latents_of(pipe, n=1).shape[0] == 1


def test_images_per_prompt(pipe, latents_of):
    with attached(pipe, AlignedStyle(), images_per_prompt=2):
        seeds = [0, 1, 2, 3]
        both = latents_of(pipe, n=2, seeds=seeds, num_images_per_prompt=2)
    with attached(pipe, AlignedStyle()):
        second = latents_of(pipe, n=2, seeds=[1, 3])
    torch.testing.assert_close(both[1::2], second, atol=1e-5, rtol=1e-5)
    with pytest.raises(ControlError, match="does not divide"), attached(pipe, AlignedStyle(), images_per_prompt=2):
        latents_of(pipe, n=3)
    with pytest.raises(ControlError, match="one prompt"), attached(pipe, AlignedStyle(), images_per_prompt=3):
        latents_of(pipe, n=3)


def test_two_references_have_a_row_each(pipe, latents_of):
    pictures = [Reference(picture=Image.new("RGB", (64, 64), c), caption="a tile") for c in ("red", "blue")]
    first = AlignedStyle(reference=pictures[0], adain_queries=False, adain_keys=False)
    second = StyleAligned(reference=pictures[1], where=Where(blocks="double"))
    rows: list[int] = []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    with attached(pipe, [first, second]):
        both = latents_of(pipe, n=2)
        assert rows.pop() == 4
    with attached(pipe, [second, first]):
        swapped = latents_of(pipe, n=2)
    with attached(pipe, [first, second.model_copy(update={"reference": pictures[0]})]):
        same = latents_of(pipe, n=2)
        assert rows.pop() == 3
    torch.testing.assert_close(both, swapped, atol=1e-4, rtol=1e-4)
    assert (both - same).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("controls", "where"),
    [([AlignedStyle(), StyleAligned()], r"aligned and stylealigned both set the image keys and the image queries"),
     ([AlignedStyle(), AlignedStyle(where=Where(blocks="3"))], r"in 1 blocks \(L3 \(single 1\)")],
)  # fmt: skip
def test_two_controls_on_the_same_features_conflict(controls, where, pipe):
    with pytest.raises(ConflictError, match=where), attached(pipe, controls):
        pass


def test_no_conflict_in_other_blocks_steps_or_when_off(pipe):
    for other in (
        StyleAligned(where=Where(blocks="double")),
        StyleAligned(strength=0),
        NaiveSharing(),
    ):
        with attached(pipe, [AlignedStyle(), other]):
            pass
    early, late = Where(steps="0%-50%"), Where(steps="50%-100%")
    with attached(pipe, [AlignedStyle(where=early), StyleAligned(where=late)]):
        pass


def test_nested_session_is_refused_and_leaves_the_first_in_place(pipe, latents_of):
    with attached(pipe, AlignedStyle()):
        before = latents_of(pipe)
        with pytest.raises(ConflictError, match="attach them together"), attached(pipe, AlignedStyle()):
            pass
        assert torch.equal(latents_of(pipe), before)


def test_a_second_thread_waits_or_is_refused(pipe, latents_of):
    stock = latents_of(pipe)
    order: list[str] = []
    inside = threading.Event()
    results = []

    def first():
        with attached(pipe, AlignedStyle()):
            inside.set()
            time.sleep(0.2)
            order.append("first")

    def second():
        with attached(pipe, AlignedStyle(strength=0)):
            order.append("second")
            results.append(latents_of(pipe))

    threads = [threading.Thread(target=f) for f in (first, second)]
    threads[0].start()
    inside.wait()
    with pytest.raises(ConflictError, match="another thread"), attached(pipe, AlignedStyle(), wait=False):
        pass
    threads[1].start()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]
    assert torch.equal(results[0], stock)


def test_a_model_with_a_session_behind_it_can_be_copied(pipe):
    with attached(pipe, AlignedStyle()):
        pass
    copied = copy.deepcopy(pipe.transformer)
    assert copied._attnctrl_lock is not pipe.transformer._attnctrl_lock


def test_selection_without_a_site_is_refused(pipe):
    where = Where(blocks="single", heads="L0H1")
    with pytest.raises(ControlError, match="selects no block or head"), attached(pipe, AlignedStyle(where=where)):
        pass


def test_never_acting_warns(pipe, latents_of):
    with pytest.warns(NoEffectWarning, match="never acted"), attached(pipe, AlignedStyle(where=Where(steps="7-9"))):
        latents_of(pipe, steps=3)


def test_a_pipeline_with_a_unet_is_refused_by_the_models_that_controls_run_on():
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, cross_attention_dim=16,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=2,
    )  # fmt: skip
    tokenizer, text_encoder = clip_parts()
    old = StableDiffusionPipeline(
        tiny_vae(), text_encoder, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    words = (
        "StableDiffusionPipeline .*is not supported; controls run on .*FluxTransformer2DModel.*SD3Transformer2DModel"
    )
    for control in (AlignedStyle(), [AlignedStyle(), SoftPAG(where=Where(heads="L1H1"))], AlignedStyle(strength=0)):
        with pytest.raises(ControlError, match=words), attached(old, control):
            pass
    with pytest.raises(ControlError, match=r"StableDiffusionPipeline has no .*FluxTransformer2DModel"):
        controlled(StableDiffusionPipeline)


def test_unknown_model_and_foreign_processor(pipe):
    class Other:
        transformer = torch.nn.Linear(2, 2)

    with pytest.raises(ControlError, match="Other with a Linear is not supported"), attached(Other(), AlignedStyle()):
        pass
    pipe.transformer.transformer_blocks[0].attn.processor = type(
        "Mine", (), {"__call__": print, "_parallel_config": None}
    )()
    with pytest.raises(ControlError, match=r"L0 \(double 0\) has a Mine"), attached(pipe, StyleAligned()):
        pass
    stock = type(pipe.transformer.transformer_blocks[1].attn.processor).__name__
    assert stock == "FluxAttnProcessor"
    with attached(pipe, AlignedStyle()) as session:
        assert "3 of 5 blocks, L2 (single 0) .. L4 (single 2)" in repr(session)


def test_attention_backend_set_inside_a_session_reaches_the_stock_processors(latents_of):
    pipe = tiny_flux()
    with attached(pipe, StyleAligned()):
        pipe.transformer.set_attention_backend("_native_math")
    backends = {p._attention_backend for p in pipe.transformer.attn_processors.values()}
    assert [b.value for b in backends] == ["_native_math"]


def test_where_keeps_what_it_leaves_open():
    assert AlignedStyle(where=Where(steps="0-3")).where == Where(blocks="late", steps="0-3")
    assert AlignedStyle(where={"steps": "0-3"}).where.blocks == "late"
    assert AlignedStyle(where=Where(blocks="all")).where.blocks == "all"


def test_controls_are_data():
    control = AlignedStyle(strength=0.5, reference=Reference(picture=Image.new("RGB", (9, 9), "red"), caption="a"))
    again = AlignedStyle.model_validate_json(control.model_dump_json())
    assert again.reference is not None
    assert again.reference.picture.tobytes() == control.reference.picture.tobytes()
    assert again.model_dump_json() == control.model_dump_json()
    with pytest.raises(ValueError, match="frozen"):
        control.strength = 1.0
    with pytest.raises(ValueError, match="strenght"):
        AlignedStyle(strenght=0.5)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        AlignedStyle(strength=-1)
