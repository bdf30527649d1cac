"""Perturbation guidance, NAG and APG on FLUX, SD3 and SD3.5 against the dense float64 references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, StableDiffusion3Img2ImgPipeline
from PIL import Image
from references.flux import image_ids
from references.guidance import (
    blurred_query_map,
    identity_map,
    image_query_mean_map,
    image_rows,
    query_mean_map,
    self_text_map,
    uniform_map,
)
from references.guidance_models import Change, flux_velocity, sd3_velocity
from references.guidance_runs import (
    GRID,
    NEGATIVE,
    SCALE,
    Guide,
    Model,
    Naive,
    Negative,
    Passes,
    Projected,
    attending,
    naive_run,
    shuffling,
)
from references.guidance_sample import guided
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import APG, NAG, PAG, SEG, SLG, TPG, Control, SoftPAG, Where, attached, controlled

W = 1.5  # the weight of every perturbed pass
TEXT = 40

MODELS = {
    "FLUX": Model(tiny_flux, flux_velocity),
    "SD3": Model(tiny_sd3, sd3_velocity),
    "SD3.5": Model(tiny_sd3, sd3_velocity, {"qk_norm": "rms_norm", "dual": (0, 1)}),
}
DISTILLED = {"FLUX distilled": Model(tiny_flux, flux_velocity, {"guidance": True})}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
runnable = pytest.mark.parametrize("model", (MODELS | DISTILLED).values(), ids=(MODELS | DISTILLED).keys())
with_and_without_cfg = pytest.mark.parametrize("cfg", [False, True], ids=["", "CFG"])


# ---------------------------------------------------------------- cases

BOTH = Where(blocks="1-2", heads="all")
TWO = Where(blocks="all", heads="L1H0 L2H3")
MIXED = Where(blocks="all", heads="L2H3 L1H2 L1H0")
PAIR = {1: [1.0] * 4, 2: [1.0] * 4}


def two(u: float) -> dict[int, list[float]]:
    return {1: [u, 0, 0, 0], 2: [0, 0, 0, u]}


def soft(where: Where, u: Any = 1.0, **more: Any) -> SoftPAG:
    return SoftPAG(where=where, strength=W, u=u, **more)


GUIDES = {
    "SoftPAG": attending(soft(TWO, 0.4), identity_map, two(0.4)),
    "SoftPAG, every head": attending(soft(BOTH, 0.4), identity_map, {1: [0.4] * 4, 2: [0.4] * 4}),
    "SoftPAG, u = 1": attending(soft(TWO), identity_map, two(1.0)),
    "SoftPAG, u of each head": attending(
        soft(MIXED, (0.3, 1.0, 0.6)), identity_map, {1: [0.6, 0, 1.0, 0], 2: [0, 0, 0, 0.3]}
    ),
    "SoftPAG, image rows": attending(soft(TWO, 0.7, rows="image"), image_rows(identity_map), two(0.7)),
    "uniform": attending(soft(TWO, 0.7, target="uniform"), uniform_map, two(0.7)),
    "uniform, image rows": attending(soft(BOTH, target="uniform", rows="image"), image_rows(uniform_map), PAIR),
    "query mean": attending(soft(TWO, 0.7, target="query-mean"), query_mean_map, two(0.7)),
    "query mean, image rows": attending(soft(BOTH, target="query-mean", rows="image"), image_query_mean_map, PAIR),
    "PAG": attending(PAG(where=BOTH, strength=W, rule="joint"), identity_map, PAIR),
    "PAG, self and text": attending(PAG(where=BOTH, strength=W, rule="self-text"), self_text_map, PAIR),
    "PAG, self and text, some heads": attending(
        PAG(where=TWO, strength=W, rule="self-text"), self_text_map, two(1.0)
    ),
    "SEG": attending(SEG(where=BOTH, strength=W, sigma=0.8), blurred_query_map(0.8), PAIR),
    "SEG, wider than the grid": attending(SEG(where=TWO, strength=W, sigma=3.0), blurred_query_map(3.0), two(1.0)),
    "SEG, half": attending(SEG(where=TWO, strength=W, sigma=1.3, u=0.5), blurred_query_map(1.3), two(0.5)),
    "SEG, mean": attending(SEG(where=BOTH, strength=W, sigma=1e5), image_query_mean_map, PAIR),
    "SLG": Guide(SLG(where=Where(blocks="1", steps="all"), strength=W), lambda step: Change(skip={1})),
    "SLG, first and last": Guide(SLG(where=Where(blocks="0,2", steps="all"), strength=W), lambda step: Change(skip={0, 2})),
    "TPG": shuffling(TPG(where=Where(blocks="1-2"), strength=W), [1, 2], 0),
    "TPG, seed 3": shuffling(TPG(where=Where(blocks="0"), strength=W, seed=3), [0], 3),
}  # fmt: skip
ALL = Where(blocks="all")
ROWS = {"shared_pooled": True, "kinds": ("joint",)}  # one image stream under two texts, as in the authors' SD3 pipeline
NEGATIVES = {
    "NAG": Negative(NAG(where=ALL, prompt=NEGATIVE), **ROWS),
    "NAG, L2": Negative(NAG(where=ALL, prompt=NEGATIVE, norm=2), options={"norm": 2}, **ROWS),
    "NAG, options": Negative(
        NAG(where=ALL, prompt=NEGATIVE, phi=8.0, tau=1.5, alpha=0.5, strength=0.5),
        options={"phi": 8.0, "tau": 1.5, "alpha": 0.25},
        **ROWS,
    ),
    "NAG, first blocks": Negative(NAG(where=Where(blocks="0-1"), prompt=NEGATIVE), range(2), **ROWS),
}


def apg(model: Model, options: dict[str, float]) -> APG:
    """FLUX's true CFG is two calls, which do not know the scale."""
    return APG(**options, guidance_scale=None if model.sd3 else SCALE)


guides = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES.keys())


# ---------------------------------------------------------------- single calls


def inputs(model: Model, cfg: bool) -> tuple[Passes, float]:
    """Two rows of the same latents under two texts, at the noise level of the second of four steps."""
    g = torch.Generator().manual_seed(7)
    scheduler = model.exact.scheduler
    scheduler.set_timesteps(4, **({} if model.sd3 else {"mu": 0.6}))
    scheduler.set_begin_index(1)
    sigma = float(scheduler.sigmas[1])
    shape = (16, 2 * GRID[0], 2 * GRID[1]) if model.sd3 else (GRID[0] * GRID[1], 16)
    shared: dict[str, Any] = {
        "hidden_states": torch.randn(2, *shape, generator=g).double(),
        "timestep": torch.full((2,), sigma * (1000 if model.sd3 else 1)).double(),
    }
    if not model.sd3:
        shared |= {"img_ids": image_ids(*GRID), "txt_ids": torch.zeros(TEXT, 3)}
    said = [
        {
            "encoder_hidden_states": torch.randn(2, TEXT, 16, generator=g).double(),
            "pooled_projections": torch.randn(2, 16, generator=g).double(),
        }
        for _ in range(2)
    ]
    return (shared | said[0], shared | said[1] if cfg else None), sigma


def ours(model: Model, control: Control, passes: Passes) -> tuple[Tensor, Tensor | None]:
    """What the transformer returns for the prompts and for the negative prompts: one batch on SD3, two calls on FLUX."""
    pipe, (cond, uncond) = model.exact, passes
    pipe._guidance_scale = 1.0 if uncond is None else SCALE
    with torch.no_grad(), attached(pipe, control):
        if uncond is None:
            return pipe.transformer(**cond, return_dict=False)[0], None
        if model.sd3:
            batch = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
            negative, positive = pipe.transformer(**batch, return_dict=False)[0].chunk(2)
            return positive, negative
        positive = pipe.transformer(**cond, return_dict=False)[0]
        return positive, pipe.transformer(**uncond, return_dict=False)[0]


def check_one_call(model: Model, case: Guide | Negative, cfg: bool, least: float = 1e-3) -> None:
    passes, sigma = inputs(model, cfg)
    naive, x = Naive(model, passes), passes[0]["hidden_states"]
    expected = case.outputs(naive, 0, sigma, x)
    assert (expected[0] - naive.cond(x, sigma)).abs().amax((*range(1, x.ndim),)).min() > least
    for mine, theirs in zip(ours(model, case.control, passes), expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=2e-6)


@models
@with_and_without_cfg
@guides
def test_one_call_equals_the_naive_one(model, guide, cfg):
    check_one_call(model, guide, cfg)


@models
@with_and_without_cfg
@pytest.mark.parametrize("case", NEGATIVES.values(), ids=NEGATIVES.keys())
def test_nag_equals_the_naive_one(model, case, cfg):
    """Under CFG the rows of the negative prompts are left alone."""
    check_one_call(model, case, cfg)


@pytest.mark.parametrize("kind", ["joint", "dual"])
def test_one_of_the_two_attentions_of_a_block(kind):
    where = Where(blocks=f"{kind}:1")
    for control, target in ((soft(where, 0.8), identity_map), (SEG(where=where, strength=W, sigma=0.8), None)):
        amounts = {1: [0.8 if target else 1.0] * 4}
        guide = attending(control, target or blurred_query_map(0.8), amounts, kinds=(kind,))
        check_one_call(MODELS["SD3.5"], guide, True)


@models
@pytest.mark.parametrize("options", [{"norm_threshold": 0.5}, {"eta": 0.7}], ids=["clipped", "eta"])
def test_apg_equals_the_naive_one(model, options):
    passes, sigma = inputs(model, True)
    case, x = Projected(options), passes[0]["hidden_states"]
    positive, negative = ours(model, apg(model, case.options), passes)
    naive = Naive(model, passes)
    expected = case.velocity(naive, 0, sigma, x)
    cfg = guided(naive.cond(x, sigma), [], naive.uncond(x, sigma), SCALE)
    assert (expected - cfg).abs().max() > 1e-2
    torch.testing.assert_close(negative + SCALE * (positive - negative), expected, atol=2e-6, rtol=2e-6)


# ---------------------------------------------------------------- whole runs


def call_of(model: Model, cfg: bool, steps: int = 3, **more: Any) -> dict[str, Any]:
    """The arguments of a pipeline call for two prompts, its generators fresh."""
    scale = {"guidance_scale": SCALE if cfg else 1.0} if model.sd3 else {"true_cfg_scale": SCALE if cfg else 1.0}
    return {
        "prompt": ["a fox", "a teapot"], "num_inference_steps": steps, "height": 8 * GRID[0], "width": 8 * GRID[1],
        "max_sequence_length": 12, "output_type": "latent",
        "generator": [torch.Generator().manual_seed(seed) for seed in (0, 1)],
        **({"negative_prompt": ["a key", "an owl"]} if cfg else {}), **scale, **more,
    }  # fmt: skip


def check_run(model: Model, control: Control, velocity: Callable[..., Tensor], cfg: bool, **more: Any) -> None:
    pipe = model.pipe
    stock, expected = naive_run(model, pipe, call_of(model, cfg, **more), cfg, velocity)
    assert (expected - stock).abs().flatten(1).amax(1).min() > 1e-2 * expected.abs().max()
    with attached(pipe, control):
        results = [pipe(**call_of(model, cfg, **more)).images for _ in range(2)]
    assert torch.equal(*results), "a run starts afresh"
    assert (results[0] - expected).abs().max() < 2e-4 * expected.abs().max()
    other = controlled(type(pipe))(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(other(**call_of(model, cfg, **more), control=control).images, results[0])


@runnable
@with_and_without_cfg
@pytest.mark.parametrize("name", ["SoftPAG, u of each head", "PAG, self and text", "SEG", "SLG", "TPG, seed 3", "NAG"])
def test_whole_run_equals_the_naive_loop(model, name, cfg):
    case = (GUIDES | NEGATIVES)[name]
    check_run(model, case.control, case.velocity, cfg)


@runnable
def test_whole_run_with_apg_equals_the_naive_loop(model):
    """Momentum runs through the steps; the threshold clips."""
    case = Projected({"eta": 0.3, "momentum": -0.5, "norm_threshold": 4.0})
    check_run(model, apg(model, case.options), case.velocity, True)


@models
@with_and_without_cfg
@pytest.mark.parametrize("name", ["SoftPAG", "TPG", "NAG"])
def test_steps_outside_the_window_are_plain(model, name, cfg):
    case = (GUIDES | NEGATIVES)[name]
    where = case.control.where.model_copy(update={"steps": "1-2"})
    case = replace(case, control=case.control.model_copy(update={"where": where}))

    def velocity(naive: Naive, step: int, sigma: float, x: Tensor) -> Tensor:
        if step in (1, 2):
            return case.velocity(naive, step, sigma, x)
        return guided(naive.cond(x, sigma), [], naive.uncond(x, sigma), SCALE)

    check_run(model, case.control, velocity, cfg, steps=4)


def test_beside_the_pipelines_own_skipped_layers():
    """SD3's third call in a step asks for cond - skipped: it must not count the guidance twice."""
    model, case = MODELS["SD3.5"], GUIDES["SoftPAG"]

    def velocity(naive: Naive, step: int, sigma: float, x: Tensor) -> Tensor:
        own = naive.cond(x, sigma) - naive.cond(x, sigma, Change(skip={0})) if step else 0.0
        return case.velocity(naive, step, sigma, x) + 2.0 * own

    more = {"skip_guidance_layers": [0], "skip_layer_guidance_scale": 2.0, "skip_layer_guidance_stop": 1.0}
    check_run(model, case.control, velocity, True, **more)


@models
@with_and_without_cfg
@pytest.mark.parametrize("name", ["SEG", "TPG", "NAG"])
def test_from_a_picture(model, name, cfg):
    """Steps count from where the run begins in the schedule."""
    case = (GUIDES | NEGATIVES)[name]
    cls = controlled(StableDiffusion3Img2ImgPipeline if model.sd3 else FluxImg2ImgPipeline)
    pipe = cls(**model.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.effect_mandelbrot((8 * GRID[1], 8 * GRID[0]), (-2, -1, 1, 1), 40).convert("RGB")

    def call() -> dict[str, Any]:
        return call_of(model, cfg, steps=4, image=[picture] * 2, strength=0.7)

    stock, expected = naive_run(model, pipe, call(), cfg, case.velocity)
    result = pipe(**call(), control=case.control).images
    assert (expected - stock).abs().max() > 1e-2 * expected.abs().max()
    assert (result - expected).abs().max() < 2e-4 * expected.abs().max()


# ---------------------------------------------------------------- off and after

CONTROLS = [GUIDES[name].control for name in ("SoftPAG", "PAG, self and text", "SEG", "SLG", "TPG")]
CONTROLS += [NEGATIVES["NAG"].control, APG(guidance_scale=SCALE)]


def hooks_of(transformer: torch.nn.Module) -> list[Any]:
    return [h for module in transformer.modules() for h in (*module._forward_hooks, *module._forward_pre_hooks)]


@runnable
@with_and_without_cfg
def test_zero_strength_is_bit_equal_and_nothing_stays(model, cfg):
    pipe = model.pipe
    stock, text = pipe(**call_of(model, cfg)).images, copy.copy(pipe.transformer.__dict__)
    processors = list(pipe.transformer.attn_processors.values())
    for control in CONTROLS:
        with attached(pipe, control.model_copy(update={"strength": 0.0})):
            assert torch.equal(pipe(**call_of(model, cfg)).images, stock), control.kind
        if cfg or not isinstance(control, APG):
            with attached(pipe, control):
                assert not torch.equal(pipe(**call_of(model, cfg)).images, stock), control.kind
        assert all(a is b for a, b in zip(processors, pipe.transformer.attn_processors.values(), strict=True))
        assert not hooks_of(pipe.transformer)
        assert pipe.transformer.__dict__.keys() <= text.keys() | {"_attnctrl_lock"}
        assert torch.equal(pipe(**call_of(model, cfg)).images, stock), control.kind


@models
@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.kind)
def test_everything_is_back_after_an_exception(model, control):
    pipe = model.pipe
    stock = pipe(**call_of(model, True)).images

    def fail(*args: Any) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), attached(pipe, control):
        pipe(**call_of(model, True), callback_on_step_end=fail)
    assert not hooks_of(pipe.transformer)
    assert torch.equal(pipe(**call_of(model, True)).images, stock)
