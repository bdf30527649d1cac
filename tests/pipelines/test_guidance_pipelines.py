"""Guides, NAG and APG beside what pipelines offer: other inputs, other controls, diffusers' features, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from matrix import FEATURES, SKIP, shrink
from matrix import MODELS as PIPELINES
from test_guidance import MODELS, NAMED, blocks_of
from test_siblings import GOLD, call_of
from tiny import tiny_flux, tiny_sd3
from torch._dynamo.testing import CompileCounter

from attnctrl import APG, NAG, PAG, SLG, TPG, AlignedStyle, ControlError, SoftPAG, Where, attached
from attnctrl.guidance import Guidance

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
HEADS = Where(heads="L1H1, L2H0")
GUIDE, OWL = SoftPAG(where=HEADS), NAG(prompt="an owl")

# ---------------------------------------------------------------- other inputs

INPUTS = [
    *[(f"{family}{task}Pipeline", mode) for family in ("Flux", "StableDiffusion3")
      for task, mode in (("Img2Img", "guided"), ("Inpaint", "two images"), ("ControlNet", "embeddings"), ("ControlNet", "guided"))],
    ("FluxKontextPipeline", "guided"), ("FluxKontextPipeline", "two images"), ("FluxFillPipeline", "plain"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "mode"), INPUTS)
def test_other_inputs(name, mode):
    """Off is stock, every picture is guided, and one whose neighbours are not there is the same."""
    sibling = NAMED[name]
    pipe, images = sibling.build(), 2 if mode == "two images" else 1

    def run(control: Any = None) -> torch.Tensor:
        with attached(pipe, control, images_per_prompt=images):
            return pipe(**call_of(sibling, pipe, mode)).images

    stock = run()
    for control in (GUIDE, OWL):
        guided = run(control)
        assert guided.shape == stock.shape
        assert (guided - stock).abs().flatten(1).amax(1).min() > 1e-3
        assert torch.equal(run(control.model_copy(update={"strength": 0.0})), stock)
    assert torch.equal(run(), stock)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("control", [GUIDE, OWL], ids=lambda c: c.kind)
def test_images_of_one_prompt_are_guided_as_prompts_of_their_own(control, model, latents_of):
    pipe, more = MODELS[model](), {} if model == "FLUX" else {"guidance_scale": 3.0}
    with attached(pipe, control, images_per_prompt=2):
        twice = latents_of(pipe, n=2, seeds=[0, 1, 2, 3], num_images_per_prompt=2, **more)
    with attached(pipe, control):
        apart = latents_of(pipe, n=4, prompt=[p for p in ("a fox", "a teapot") for _ in range(2)], **more)
        alone = latents_of(pipe, n=1, seeds=[1], prompt=["a fox"], **more)
    assert torch.equal(twice, apart)
    torch.testing.assert_close(twice[1:2], alone, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- other controls


@pytest.mark.parametrize("control", [GUIDE, APG()], ids=lambda c: c.kind)
def test_sd3s_own_skipped_layers_add_up(control, latents_of):
    """In one step both terms are sums: what either adds does not depend on the other."""
    pipe, call = tiny_sd3(), {"n": 2, "steps": 1, "guidance_scale": 3.0}
    skip = {**SKIP, "skip_layer_guidance_start": -1.0}
    with attached(pipe, control):
        guided, both = latents_of(pipe, **call), latents_of(pipe, **call, **skip)
    plain, skipped = latents_of(pipe, **call), latents_of(pipe, **call, **skip)
    assert min((guided - plain).abs().max(), (skipped - plain).abs().max()) > 0.1
    torch.testing.assert_close(both - skipped, guided - plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("model", MODELS)
def test_sharing_and_guidance_compose(model, cfg, latents_of, monkeypatch):
    """The perturbed pass shares as well; the leading picture is as without sharing, the others follow it."""
    pipe, late = MODELS[model](), SoftPAG(where=Where(heads="L2H0"))
    call = {"steps": 2, **({"cfg": cfg} if model == "FLUX" else {"guidance_scale": cfg})}

    def run(*controls: Any) -> torch.Tensor:
        with attached(pipe, controls):
            return latents_of(pipe, **call)

    for style in (AlignedStyle(), AlignedStyle(reference=GOLD, additive="none")):
        leads = 0 if style.reference else 1
        both = run(style, late)
        assert torch.equal(run(late, style), both)
        with monkeypatch.context() as patch:
            patch.setattr(Guidance, "shares_prefix", False)
            torch.testing.assert_close(run(style, late), both, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(both[:leads], run(late)[:leads], atol=1e-4, rtol=1e-4)
        assert (both - run(style)).abs().flatten(1).amax(1).min() > 1e-3
        if cfg == 1.0:
            perturbed = late.model_copy(update={"strength": -1.0})
            assert (run(style, perturbed) - run(perturbed))[leads:].abs().flatten(1).amax(1).min() > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_what_a_guide_adds_does_not_depend_on_the_pipelines_guidance(model, latents_of):
    pipe, added = MODELS[model](), []
    for scale in (1.0, 2.0, 4.0):
        call = {"steps": 1, **({"cfg": scale} if model == "FLUX" else {"guidance_scale": scale})}
        with attached(pipe, GUIDE):
            guided = latents_of(pipe, **call)
        added.append(guided - latents_of(pipe, **call))
    assert added[0].abs().max() > 0.1
    torch.testing.assert_close(added, [added[0]] * 3, atol=1e-4, rtol=1e-4)


def test_guides_and_nag_in_one_session_add_up(pipe, latents_of):
    """In one step two guides' terms are sums of those of each alone."""
    other = PAG(where=Where(blocks="3"), strength=0.5)
    results = []
    for controls in ([], [GUIDE], [other], [GUIDE, other], [OWL], [OWL, GUIDE]):
        with attached(pipe, controls):
            results.append(latents_of(pipe, steps=1))
    plain, first, second, both, owl, owl_first = results
    torch.testing.assert_close(both - plain, (first - plain) + (second - plain), atol=1e-4, rtol=1e-4)
    assert min((owl_first - owl).abs().max(), (owl_first - first).abs().max()) > 1e-2


# ---------------------------------------------------------------- diffusers' features

NAMES = ("LoRA (PEFT)", "model offload", "sequential offload", "group offload, by block",
         "bfloat16", "FirstBlockCache")  # fmt: skip
CELLS = [
    pytest.param(f, m, id=f"{f.name}, {m}")
    for f in FEATURES
    if f.name in NAMES
    for m in ("FLUX", "SD3.5")
    if m not in f.absent
]


@pytest.mark.parametrize(("feature", "model"), CELLS)
def test_features(feature, model, latents_of):
    pipe = PIPELINES[model]()
    guidance = {"cfg": 2.0} if model == "FLUX" else {"guidance_scale": 2.0}

    def run(control: Any = None, **more: Any) -> torch.Tensor:
        with attached(pipe, control):
            return latents_of(pipe, n=2, steps=2, **guidance, **more)

    without = run(GUIDE)
    feature.use(pipe)
    call = feature.call(pipe)
    stock, guided = run(**call), run(GUIDE, **call)
    assert guided.dtype == stock.dtype
    assert (guided - stock).abs().flatten(1).amax(1).min() > 1e-1
    if feature.same is None:
        assert (guided - without).abs().max() > 1e-2, "the feature acts under the guide"
    else:
        torch.testing.assert_close(guided, without, atol=feature.same, rtol=feature.same)
    assert torch.equal(run(GUIDE.model_copy(update={"u": 0.0}), **call), stock)
    assert torch.equal(run(**call), stock)


SKIPS = SLG(where=Where(blocks="1", steps="all"))


@pytest.mark.parametrize("control", [GUIDE, SKIPS, TPG(where=Where(blocks="1"))], ids=lambda c: c.kind)
def test_a_cache_keeps_the_perturbed_pass_apart(control, latents_of):
    """Nothing is reused below a threshold of 0; above a large one each of the three passes reuses its own."""
    pipe = tiny_flux()
    calls = [0] * 5
    for i, block in enumerate(blocks_of(pipe)):
        block.attn.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    with attached(pipe, control):
        without = latents_of(pipe, cfg=2.0)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        assert torch.equal(latents_of(pipe, cfg=2.0), without)
        pipe.transformer.disable_cache()
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=9.0))
        calls[:] = [0] * 5
        latents_of(pipe, cfg=2.0)
    assert calls == [9, 2 if control is SKIPS else 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("control", "config", "words"),
    [
        (SLG(where=Where(blocks="0", steps="all")), FirstBlockCacheConfig(), "leave out block 0, which keeps the FirstBlockCache; choose"),
        (SLG(where=Where(blocks="1-4", steps="all")), FirstBlockCacheConfig(), "leave out block 4, which keeps the FirstBlockCache"),
        (GUIDE, PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
         "would read the others' PyramidAttentionBroadcast; use FirstBlockCacheConfig"),
    ],
    ids=["first block", "last block", "broadcast"],
)  # fmt: skip
def test_what_a_cache_cannot_carry_is_refused(control, config, words, pipe, latents_of):
    pipe.transformer.enable_cache(config)
    with pytest.raises(ControlError, match=words), attached(pipe, control):
        latents_of(pipe)


@pytest.mark.parametrize("together", [1, 2])
def test_no_block_runs_that_group_offloading_has_not_brought(together, pipe, latents_of, monkeypatch):
    """Two blocks a group come with the first one's call, so that none of them is passed over."""
    here: set[int] = set()
    missing = []

    def moving(name: str, change: Any) -> None:
        stock = getattr(ModuleGroup, name)
        monkeypatch.setattr(ModuleGroup, name, lambda group: (change({id(m) for m in group.modules}), stock(group))[1])

    moving("onload_", here.update)
    moving("offload_", here.difference_update)
    cpu = torch.device("cpu")
    apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=together)
    for i, block in enumerate(blocks_of(pipe)):
        block.attn.register_forward_hook(lambda *_, i=i, own=block: missing.append(i) if id(own) not in here else None)
    for where in ("L1H0", "L3H1, L4H0"):
        with attached(pipe, SoftPAG(where=Where(heads=where))):
            latents_of(pipe)
    assert not missing
    if together == 2:
        with (
            pytest.raises(ControlError, match=r"block 1, which is offloaded in one group .* num_blocks_per_group=1"),
            attached(pipe, SKIPS),
        ):
            latents_of(pipe)


# ---------------------------------------------------------------- compilation


@pytest.mark.parametrize(
    "controls",
    [[SoftPAG(where=Where(heads="L1H1", steps="40%-70%"))],
     [SLG(where=Where(blocks="1", steps="0%-50%")), TPG(where=Where(blocks="3"))]],
    ids=["window", "whole blocks"],
)  # fmt: skip
def test_compiled_blocks_make_no_graph_per_step(controls, latents_of):
    torch._dynamo.reset()
    pipe, counter = tiny_flux(), CompileCounter()
    with attached(pipe, controls):
        expected = latents_of(pipe, n=2, steps=8)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    with attached(pipe, controls):
        latents_of(pipe, n=2, steps=3)
        graphs = counter.frame_count
        torch.testing.assert_close(latents_of(pipe, n=2, steps=8), expected, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == graphs
    torch._dynamo.reset()


@pytest.mark.parametrize(("whole", "model"), [(True, "FLUX"), (False, "SD3.5")])
def test_compiled_models_make_no_graph_per_step(whole, model, latents_of):
    """Two blocks, compiled as a whole and one by one."""
    torch._dynamo.reset()
    pipe, counter = PIPELINES[model](), CompileCounter()
    shrink(pipe)
    control = SoftPAG(where=Where(heads="L1H1"))
    call = {"n": 2, "steps": 3, **({} if model == "FLUX" else {"guidance_scale": 2.0})}
    with attached(pipe, control):
        expected = latents_of(pipe, **call)
    if whole:
        pipe.transformer = torch.compile(pipe.transformer, backend=counter)
    for block in () if whole else blocks_of(pipe):
        block.compile(backend=counter, fullgraph=True)
    stock = latents_of(pipe, **call)
    with attached(pipe, control):
        latents_of(pipe, **{**call, "steps": 1})
        graphs = counter.frame_count
        torch.testing.assert_close(latents_of(pipe, **call), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(latents_of(pipe, **call), stock)
    assert counter.frame_count == graphs
    torch._dynamo.reset()
