"""What diffusers' own guiders (0.42.1) get wrong on FLUX and SD3, and that ours get right in the same case.

A test that fails with "diffusers has mended it" is good news: take it out, and the line in the documentation with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3PAGPipeline
from diffusers.guiders import PerturbedAttentionGuidance, SkipLayerGuidance, SmoothedEnergyGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.layer_skip import apply_layer_skip
from diffusers.models.attention_processor import JointAttnProcessor2_0, PAGJointAttnProcessor2_0
from diffusers.pipelines.pag.pag_utils import PAGMixin
from tiny import tiny_flux, tiny_sd3, tiny_sd3_parts, tiny_sd3_transformer

from attnctrl import PAG, SEG, SLG, NoEffectWarning, SoftPAG, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
MENDED = "diffusers has mended it: {}; take this test out and say so in the documentation"
MODELS = {"FLUX": tiny_flux, "SD3": tiny_sd3}
both_models = pytest.mark.parametrize("model", MODELS)


def still(wrong: bool, what: str) -> None:
    assert wrong, MENDED.format(what)


def still_raises(call: Callable[[], Any], error: type[Exception], words: str, what: str) -> None:
    try:
        call()
    except error as raised:
        assert words in str(raised)  # noqa: PT017
    else:
        pytest.fail(MENDED.format(what))


def third_pass(guider: Any, transformer: Any, counted: int = 0) -> None:
    """What the modular pipelines do before conditional, unconditional and perturbed pass of a middle step."""
    guider.set_state(2, 4, torch.tensor(500))
    guider._count_prepared = counted
    for _ in range(3):
        guider.prepare_models(transformer)


def guided_and_stock(pipe: Any, control: Any, latents_of: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    more = {"n": 1, "steps": 2, **({} if hasattr(pipe.transformer, "x_embedder") else {"guidance_scale": 1.0}), **more}
    with attached(pipe, control):
        guided = latents_of(pipe, **more)
    return guided, latents_of(pipe, **more)


def acts(pipe: Any, control: Any, latents_of: Any, **more: Any) -> bool:
    guided, stock = guided_and_stock(pipe, control, latents_of, **more)
    return bool(torch.isfinite(guided).all()) and float((guided - stock).abs().max()) > 1e-2


@pytest.mark.parametrize(("model", "error", "words"), [("SD3", ValueError, "not registered"), ("FLUX", AttributeError, "is_cross_attention")])  # fmt: skip
def test_perturbed_attention(model, error, words, latents_of):
    guider = PerturbedAttentionGuidance(perturbed_guidance_layers=[1], perturbed_guidance_stop=1.0)
    still_raises(lambda: third_pass(guider, MODELS[model]().transformer), error, words, f"PAG on {model}")
    assert acts(MODELS[model](), PAG(where=Where(blocks="1")), latents_of)


@pytest.mark.parametrize(
    ("kind", "name", "ours"),
    [(SkipLayerGuidance, "skip_layer_guidance", SLG), (SmoothedEnergyGuidance, "seg_guidance", SEG), (PerturbedAttentionGuidance, "perturbed_guidance", PAG)],
    ids=["SLG", "SEG", "PAG"],
)  # fmt: skip
def test_lists_of_numbers(kind, name, ours, latents_of):
    layers = 1 if kind is PerturbedAttentionGuidance else [1]
    guider = kind(**{f"{name}_layers": layers, f"{name}_stop": 1.0})
    counted = 3 if kind is SmoothedEnergyGuidance else 0  # by itself it never comes so far
    still_raises(
        lambda: third_pass(guider, tiny_sd3().transformer, counted), TypeError, "int", f"{name}_layers={layers}"
    )
    for blocks in ([1], 1):
        assert acts(tiny_sd3(), ours(where=Where(blocks=blocks, steps="all")), latents_of)


@both_models
def test_a_skipped_block_returns_its_streams_in_order(model, latents_of):
    pipe = MODELS[model]()
    block = pipe.transformer.transformer_blocks[1]
    apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    first, second = block(hidden_states=torch.zeros(1, 16, 4), encoder_hidden_states=torch.zeros(1, 3, 4))
    still(first.shape[1] == 16 and second.shape[1] == 3, "the skip hook's order of streams")
    shapes = []
    pipe.transformer.register_forward_hook(lambda _, args, output: shapes.append(output[0].shape))
    words = "invalid for input of size" if model == "SD3" else "must match the size"
    still_raises(lambda: guided_and_stock(pipe, None, latents_of), RuntimeError, words, f"one skipped block on {model}")
    assert shapes == ([] if model == "SD3" else [(1, 12, 16)]), "as long as the text"
    assert acts(MODELS[model](), SLG(where=Where(blocks="1", steps="all")), latents_of)


@both_models
def test_smoothed_energy_acts_at_all(model, latents_of):
    transformer = MODELS[model]().transformer
    third_pass(SmoothedEnergyGuidance(seg_guidance_layers=1), transformer)
    still(not any(hasattr(m, "_diffusers_hook") for m in transformer.modules()), "SEG never counts its passes")
    assert acts(MODELS[model](), SEG(where=Where(blocks="1")), latents_of)


@both_models
def test_without_cfg_the_prompt_is_perturbed(model, latents_of):
    guider = SkipLayerGuidance(guidance_scale=1.0, skip_layer_config=LayerSkipConfig([1]), skip_layer_guidance_stop=1.0)
    guider.set_state(2, 4, torch.tensor(500))
    batches = guider.prepare_inputs({"prompt": ("said", "not said")})
    told = [(batch.prompt, getattr(batch, guider._identifier_key)) for batch in batches]
    still(
        told == [("said", "pred_cond"), ("not said", "pred_cond_skip")], "without CFG the negative prompt is perturbed"
    )
    pipe, texts = MODELS[model](), []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: texts.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    assert acts(pipe, SLG(where=Where(blocks="1", steps="all")), latents_of)
    assert len(texts) == 2 * 2 + 2
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_the_first_step_is_perturbed(pipe, latents_of):
    guiders = {
        "skip": SkipLayerGuidance(skip_layer_config=LayerSkipConfig([1]), skip_layer_guidance_start=0.0),
        "perturbed": PerturbedAttentionGuidance(perturbed_guidance_layers=[1], perturbed_guidance_start=0.0),
        "smoothed": SmoothedEnergyGuidance(seg_guidance_layers=[1]),
    }
    for name, guider in guiders.items():
        guider.set_state(0, 4, torch.tensor(1000))
        still(guider.num_conditions == 2, f"{name}: step 0 is never perturbed")
    for steps in ("0", "0%-25%"):
        assert acts(pipe, SoftPAG(where=Where(heads="L1H1", steps=steps)), latents_of)


class Holder(PAGMixin):
    """What PAGMixin needs of a pipeline."""

    def __init__(self) -> None:
        self.transformer = SD3Transformer2DModel(
            sample_size=8, num_layers=12, attention_head_dim=4, num_attention_heads=1, joint_attention_dim=4,
            caption_projection_dim=4, pooled_projection_dim=4, pos_embed_max_size=8,
        )  # fmt: skip


def test_a_block_number_means_one_block():
    holder = Holder()
    holder.set_pag_applied_layers(["blocks.1"])
    holder._set_pag_attn_processor(holder.pag_applied_layers, False)
    names = [
        name.split(".")[1]
        for name, p in holder.transformer.attn_processors.items()
        if not isinstance(p, JointAttnProcessor2_0)
    ]
    still(names == ["1", "10", "11"], 'PAGMixin\'s "blocks.1" matches 10-19')
    pipe = tiny_sd3()
    pipe.transformer = Holder().transformer
    with attached(pipe, control := PAG(where=Where(blocks="1"))) as session:
        assert [site.index for site in session.sites_of(control)] == [1]


def test_the_norms_of_queries_and_keys_are_kept(latents_of):
    """Theirs drops them even in the rows that it does not perturb; ours, hardly perturbing, changes nothing."""
    for qk_norm in (None, "rms_norm"):
        attention = tiny_sd3_transformer(qk_norm).transformer_blocks[0].attn
        image, text = torch.randn(1, 9, 64), torch.randn(1, 5, 64)
        attention.processor = JointAttnProcessor2_0()
        stock = attention(image, text)[0]
        attention.processor = PAGJointAttnProcessor2_0()
        unperturbed = attention(image.repeat(2, 1, 1), text.repeat(2, 1, 1))[0][:1]
        off = (unperturbed - stock).abs().max().item()
        still(off < 1e-5 if qk_norm is None else off > 0.1, "SD3's PAG processors drop the norms of q and k")
    pipe = tiny_sd3(qk_norm="rms_norm", dual=(0, 1))
    with pytest.warns(NoEffectWarning, match="has no effect"):
        guided, stock = guided_and_stock(pipe, PAG(where=Where(blocks="0"), u=1e-9), latents_of)
    torch.testing.assert_close(guided, stock, atol=1e-4, rtol=1e-4)


def test_the_second_attention_of_sd35(latents_of):
    theirs = StableDiffusion3PAGPipeline(**tiny_sd3_parts("rms_norm", (0, 1)), pag_applied_layers="blocks.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = lambda: latents_of(theirs, n=1, steps=1, pag_scale=3.0, guidance_scale=3.0)  # noqa: E731
        still_raises(run, AttributeError, "'NoneType' object has no attribute", "PAG on SD3.5's second attention")
    pipe = tiny_sd3(qk_norm="rms_norm", dual=(0, 1))
    assert acts(pipe, PAG(where=Where(blocks="dual")), latents_of, guidance_scale=3.0)
