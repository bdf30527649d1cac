"""FLUX's `joint_attention_kwargs={"attention_mask": ...}` under controls: own keys carry it, shared keys are open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from matrix import ip_adapter, picture_prompts
from PIL import Image
from references.attention import adain, apply_rope, dense_attention
from references.flux import image_ids, reference_forward, rope_table
from references.guidance import Layout, axis_blur
from references.guidance_models import Attend, Change, flux_velocity
from references.guidance_runs import SCALE, Model, Naive, naive_run
from references.guidance_sample import guided
from test_guidance_against_naive import call_of
from test_sharing_against_naive import AXES, GRID, TEXT, call_inputs
from tiny import tiny_flux
from torch import Tensor

from attnctrl import NAG, PAG, SEG, AlignedStyle, NaiveSharing, Reference, SoftPAG, StyleAligned, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
IMAGE = GRID[0] * GRID[1]
W = 1.5


def padding(rows: int, text: int, tokens: int) -> Tensor:
    """[B, 1, 1, S], False on the tail of the text: another length in every row."""
    lengths = torch.tensor([text - 1 - row % (text - 1) for row in range(rows)])
    seen = torch.arange(tokens)[None] < lengths[:, None]
    return (seen | (torch.arange(tokens) >= text)[None])[:, None, None]


def keys(rows: int, text: int, tokens: int) -> Tensor:
    """[B, 1, 1, S]: a bias of every key, some of them hidden."""
    bias = 2 * torch.randn(rows, 1, 1, tokens, generator=torch.Generator().manual_seed(21))
    bias[..., 2::5] = -math.inf
    return bias


def pairs(rows: int, text: int, tokens: int) -> Tensor:
    """[1, 1, S, S]: a bias of every query and key, a third of them hidden; every query sees itself."""
    g = torch.Generator().manual_seed(22)
    bias = 2 * torch.randn(1, 1, tokens, tokens, generator=g)
    hidden = torch.rand(tokens, tokens, generator=g) < 0.3
    return bias.masked_fill(hidden & ~torch.eye(tokens, dtype=torch.bool), -math.inf)


MASKS: dict[str, Callable[[int, int, int], Tensor]] = {
    "bool keys": padding,
    "float keys": keys,
    "bool pairs": lambda *shape: pairs(*shape) > -math.inf,
    "float pairs": pairs,
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


def bias_of(mask: Tensor) -> Tensor:
    """The mask in float64, to be added to logits."""
    return torch.zeros(mask.shape).double().masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask.double()


def passed(mask: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The argument of a call, fresh, for diffusers changes it."""
    return {"joint_attention_kwargs": {"attention_mask": mask if mask.dtype == torch.bool else mask.to(dtype)}}


# ---------------------------------------------------------------- off

OFF = {
    "sharing": StyleAligned(strength=0),
    "two": [AlignedStyle(strength=0, where=Where(blocks="all")), StyleAligned(strength=0)],
    "half of the blocks": AlignedStyle(strength=0),
    "SoftPAG": SoftPAG(strength=0),
    "NAG": NAG(strength=0),
}


@masks
@pytest.mark.parametrize("control", OFF.values(), ids=OFF.keys())
@pytest.mark.parametrize("cfg", [1.0, 2.0], ids=["", "CFG"])
def test_off_is_bit_equal_to_stock_under_a_mask(control, mask, cfg, pipe, latents_of):
    made, before = mask(3, 12, 12 + 64), list(pipe.transformer.attn_processors.values())
    stock, unmasked = latents_of(pipe, cfg=cfg, **passed(made)), latents_of(pipe, cfg=cfg)
    assert (stock - unmasked).abs().amax((1, 2)).min() > 1e-2, "the mask acts in stock diffusers"
    with attached(pipe, control):
        assert any(a is not b for a, b in zip(before, pipe.transformer.attn_processors.values(), strict=True))
        assert torch.equal(latents_of(pipe, cfg=cfg, **passed(made)), stock)
    assert torch.equal(latents_of(pipe, cfg=cfg, **passed(made)), stock)


@masks
def test_off_is_bit_equal_to_stock_under_a_mask_beside_an_ip_adapter(mask, pipe, latents_of):
    ip_adapter(pipe)
    made, picture = mask(3, 12, 12 + 64), picture_prompts(pipe)
    stock = latents_of(pipe, **passed(made), **picture)
    with attached(pipe, StyleAligned(strength=0)):
        assert torch.equal(latents_of(pipe, **passed(made), **picture), stock)


# ---------------------------------------------------------------- on, one call against dense float64


def ours(control: Any, mask: Tensor, inputs: dict) -> Tensor:
    pipe = tiny_flux()
    pipe.transformer.double()
    pipe.scheduler.set_timesteps(4, mu=0.6)
    pipe.scheduler.set_begin_index(1)
    with torch.no_grad(), attached(pipe, control):
        return pipe.transformer(**inputs, **passed(mask, torch.float64), return_dict=False)[0]


def shared_site(bias: Tensor, shift: int, lambda_: float, adained: bool, log_bias: float, heads: Tensor):
    """[own ; shared] keys for every row but the first: the mask over the own ones, `log_bias` over the others."""
    table = rope_table(image_ids(*GRID, column_shift=shift), AXES)

    def site(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, text: int) -> Tensor:
        own = dense_attention(*(apply_rope(x, cos, sin, torch.float32) for x in (q, k)), v, bias)
        if adained:
            q, k = q.clone(), k.clone()
            for x in (q, k):
                x[1:, text:] = adain(x[1:, text:], x[:1, text:])
        others, count = len(q) - 1, q.shape[1]
        key = lambda_ * apply_rope(k[:1, text:], *table, torch.float32).expand(others, -1, -1, -1)
        q, k = (apply_rope(x, cos, sin, torch.float32) for x in (q, k))
        open_ = torch.full((others, 1, count, count - text), log_bias).double()
        joined = torch.cat([bias.expand(len(q), 1, count, count)[1:], open_], dim=-1)
        both = [torch.cat([x[1:], y], dim=1) for x, y in ((k, key), (v, v[:1, text:].expand(others, -1, -1, -1)))]
        out = own.clone()
        out[1:] = torch.lerp(own[1:], dense_attention(q[1:], *both, joined), heads)
        return out

    return site


EVERY, TWO = torch.ones(4, 1).double(), torch.tensor([0, 1, 0, 1]).double()[:, None]
SHARED = {
    "AlignedGen": (AlignedStyle(where=Where(blocks="all")), (GRID[1], 1.1, True, 0.0, EVERY)),
    "naive": (NaiveSharing(where=Where(blocks="all")), (0, 1.0, False, 0.0, EVERY)),
    "strength 2": (AlignedStyle(where=Where(blocks="all"), strength=2.0), (GRID[1], 1.1, True, math.log(2), EVERY)),
    "two heads": (NaiveSharing(where=Where(blocks="all", heads="H1 H3")), (0, 1.0, False, 0.0, TWO)),
}


@masks
@pytest.mark.parametrize(("control", "options"), SHARED.values(), ids=SHARED.keys())
def test_sharing_leaves_the_mask_on_own_keys_and_the_shared_ones_open(control, options, mask):
    inputs = call_inputs(rows=3)
    made = mask(3, TEXT, TEXT + IMAGE)

    def naive(bias: Tensor) -> Tensor:
        with torch.no_grad():
            site = shared_site(bias, *options)
            return reference_forward(tiny_flux().transformer.double(), **inputs, site_fn=lambda _, *rest: site(*rest))

    expected = naive(bias_of(made))
    unmasked = naive(torch.zeros(1, 1, 1, TEXT + IMAGE).double())
    assert (expected - unmasked).abs().amax((1, 2)).min() > 1e-2, "the mask acts in every row"
    torch.testing.assert_close(ours(control, made, inputs), expected, atol=2e-6, rtol=2e-6)


def led_to(bias: Tensor, worse: Callable[..., Tensor], blocks: dict[int, list[float]]) -> Attend:
    """lerp(masked attention, worse, u) in `blocks`, masked attention elsewhere."""

    def attend(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        out = dense_attention(q, k, v, bias)
        if index not in blocks:
            return out
        return torch.lerp(out, worse(q, k, v, layout, bias), torch.tensor(blocks[index]).double()[:, None])

    return attend


def values(q: Tensor, k: Tensor, v: Tensor, layout: Layout, bias: Tensor) -> Tensor:
    return v


def blurred(q: Tensor, k: Tensor, v: Tensor, layout: Layout, bias: Tensor) -> Tensor:
    """Queries blurred at sigma .8; each still sees what the mask lets its own place see."""
    down, across = (axis_blur(side, 0.8) for side in layout.grid)
    q, image = q.clone(), q[:, layout.image].unflatten(1, layout.grid)
    q[:, layout.image] = torch.einsum("xr,yc,brchd->bxyhd", down, across, image).flatten(1, 2)
    return dense_attention(q, k, v, bias)


GUIDES = {
    "SoftPAG": (SoftPAG(where=Where(heads="L1H0 L3H2"), u=0.4, strength=W), values, {1: [0.4, 0, 0, 0], 3: [0, 0, 0.4, 0]}),
    "PAG": (PAG(where=Where(blocks="1"), strength=W), values, {1: [1.0] * 4}),
    "SEG": (SEG(where=Where(blocks="1-2"), sigma=0.8, strength=W), blurred, {1: [1.0] * 4, 2: [1.0] * 4}),
}  # fmt: skip


@masks
@pytest.mark.parametrize(("control", "worse", "blocks"), GUIDES.values(), ids=GUIDES.keys())
def test_guides_see_the_mask_in_both_passes(control, worse, blocks, mask):
    inputs, made = call_inputs(rows=3), mask(3, TEXT, TEXT + IMAGE)
    bias, model = bias_of(made), tiny_flux().transformer.double()
    with torch.no_grad():
        cond, perturbed = (flux_velocity(model, inputs, Change(led_to(bias, worse, where))) for where in ({}, blocks))
        plain = flux_velocity(model, inputs)
    assert (cond - plain).abs().amax((1, 2)).min() > 1e-2
    assert (cond - perturbed).abs().amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(ours(control, made, inputs), cond + W * (cond - perturbed), atol=2e-6, rtol=2e-6)


# ---------------------------------------------------------------- whole runs, true CFG


@masks
@pytest.mark.parametrize("name", ["SoftPAG", "naive"])
def test_a_whole_run_under_true_cfg(name, mask):
    """The pipeline gives one mask to both passes of every step."""
    model, made = Model(tiny_flux, flux_velocity), mask(2, 12, 12 + IMAGE)
    control, bias = (GUIDES | SHARED)[name][0], bias_of(made)
    open_ = torch.zeros(1, 1, 12 + IMAGE, IMAGE).double()

    def shared(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        own = bias.expand(len(q), 1, q.shape[1], q.shape[1])
        first = dense_attention(q[:1], k[:1], v[:1], own[:1])
        both = [torch.cat([x[1:], x[:1, layout.image]], dim=1) for x in (k, v)]
        return torch.cat([first, dense_attention(q[1:], *both, torch.cat([own[1:], open_], dim=-1))])

    stock = Change(led_to(bias, values, {}))

    def velocity(naive: Naive, step: int, sigma: float, x: Tensor) -> Tensor:
        both = Change(shared) if name == "naive" else stock
        cond, uncond = (naive._velocity(one, x, sigma, both) for one in naive.passes)
        if name == "naive":
            return guided(cond, [], uncond, SCALE)
        worse = naive.cond(x, sigma, Change(led_to(bias, values, GUIDES[name][2])))
        return guided(cond, [(W, worse)], uncond, SCALE)

    pipe = model.pipe
    masked, expected = naive_run(model, pipe, call_of(model, True, **passed(made)), True, velocity)
    assert (expected - masked).abs().flatten(1).amax(1)[1] > 1e-2 * expected.abs().max()
    with attached(pipe, control):
        result = pipe(**call_of(model, True, **passed(made))).images
    assert (result - expected).abs().max() < 2e-4 * expected.abs().max()


# ---------------------------------------------------------------- added rows

GOLD = Reference(picture=Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 40).convert("RGB"), caption="a coin")


@masks
@pytest.mark.parametrize("cfg", [1.0, 2.0], ids=["", "CFG"])
@pytest.mark.parametrize(
    "control",
    [AlignedStyle(reference=GOLD), AlignedStyle(reference=(GOLD, GOLD.model_copy(update={"seed": 1})), strength=0.5),
     NAG(prompt="an owl"), [AlignedStyle(reference=GOLD), SoftPAG(where=Where(heads="L3H1"))]],
    ids=["a picture", "two pictures", "NAG", "picture and SoftPAG"],
)  # fmt: skip
def test_added_rows_are_no_nan_and_the_mask_acts(control, mask, cfg, pipe, latents_of):
    made = mask(3, 12, 12 + 64)
    with attached(pipe, control):
        masked, unmasked = latents_of(pipe, cfg=cfg, **passed(made)), latents_of(pipe, cfg=cfg)
    assert masked.shape == unmasked.shape
    assert torch.isfinite(masked).all()
    assert (masked - unmasked).abs().amax((1, 2)).min() > 1e-2


@masks
@pytest.mark.parametrize("cfg", [1.0, 2.0], ids=["", "CFG"])
def test_an_added_row_leaves_every_row_its_own_mask(mask, cfg, pipe, latents_of):
    """A picture that is read at no step: the pictures are the stock ones."""
    made = mask(3, 12, 12 + 64)
    stock = latents_of(pipe, cfg=cfg, **passed(made))
    control = AlignedStyle(reference=GOLD, where=Where(blocks="all", steps="7-9"))
    with pytest.warns(UserWarning, match="never acted"), attached(pipe, control):
        result = latents_of(pipe, cfg=cfg, **passed(made))
    torch.testing.assert_close(result, stock, atol=1e-4, rtol=1e-4)
