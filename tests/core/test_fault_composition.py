"""Controls together: their order is declared or refused, gates hold at every strength, rows keep their own heads."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from PIL import Image
from references.attention import adain, dense_attention
from references.guidance import Layout, nag_attention
from references.guidance_models import Attend, Change, flux_velocity, sd3_velocity
from references.guidance_runs import NEGATIVE, Model, Naive, negative_said
from test_guidance_against_naive import MODELS as GUIDED
from test_guidance_against_naive import inputs
from test_guidance_against_naive import ours as guided_call
from test_sharing_against_naive import SINGLE, aligned_site, call_inputs, naive, ours
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import (
    NAG,
    PAG,
    AlignedStyle,
    ConflictError,
    FreeCus,
    NaiveSharing,
    Reference,
    SoftPAG,
    StyleAligned,
    Where,
    attached,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
EVERY = Where(blocks="all")
MODELS = {"FLUX": Model(tiny_flux, flux_velocity), "SD3": Model(tiny_sd3, sd3_velocity)}
both_models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
with_and_without_cfg = pytest.mark.parametrize("cfg", [False, True], ids=["", "CFG"])
SCENERY = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 40).convert("RGB")
CAVE = Reference(picture=SCENERY, caption="a cave")
COIN = Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin", seed=3)

# ---------------------------------------------------------------- the order of the list

LISTS: dict[str, list[Any]] = {
    "AdaIN, and all read all": [StyleAligned(shift=(0, 0)), NaiveSharing(where=EVERY, share="all")],
    "AdaIN of keys, and all read all": [StyleAligned(adain_queries=False), NaiveSharing(where=EVERY, share="all", strength=0.5)],
    "AdaIN of queries, of keys": [StyleAligned(adain_keys=False), StyleAligned(adain_queries=False, share="all")],
    "AdaIN of values, and all read all": [StyleAligned(adain_queries=False, adain_keys=False, adain_values=True), NaiveSharing(where=EVERY, share="all")],
    "AdaIN, and a reader of the set's first": [StyleAligned(), NaiveSharing(where=EVERY)],
    "AdaIN to a picture, and a reader of the set's first": [StyleAligned(reference=CAVE), NaiveSharing(where=EVERY)],
    "AdaIN to a picture, and all read all": [StyleAligned(reference=CAVE), NaiveSharing(where=EVERY, share="all")],
    "AdaIN of keys to a picture, of queries to another": [
        StyleAligned(reference=CAVE, adain_queries=False), StyleAligned(reference=COIN, adain_keys=False)
    ],
    "text keys and image keys": [FreeCus(reference=CAVE, where=EVERY), StyleAligned()],
    "text keys to a picture, and all read all": [FreeCus(reference=CAVE, where=EVERY), NaiveSharing(where=EVERY, share="all")],
    "three": [StyleAligned(), NaiveSharing(where=EVERY, share="all"), FreeCus(reference=COIN, where=EVERY)],
}  # fmt: skip


@both_models
@pytest.mark.parametrize("controls", LISTS.values(), ids=LISTS.keys())
def test_the_order_of_a_list_does_not_matter_or_is_refused(controls, model):
    """One call in float64; where the order matters nobody may choose it in silence."""
    pipe, (call, _) = model.exact, inputs(model, False)[0]
    pipe.vae.double()
    pipe._guidance_scale = 1.0
    results: list[Tensor | str] = []
    for order in permutations(controls):
        try:
            with torch.no_grad(), attached(pipe, list(order)):
                results.append(pipe.transformer(**call, return_dict=False)[0])
        except ConflictError as refusal:
            results.append(str(refusal))
    first = results[0]
    for other in results[1:]:
        assert isinstance(first, str) == isinstance(other, str), "refused in one order, taken in the other"
        if isinstance(first, str):
            assert all(control.kind in first and control.kind in other for control in controls[:2])
        else:
            torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- outputs compose in their declared order

OPTIONS = {"phi": 5.0, "tau": 2.5, "norm": 1}
BLOCKS = {1: [1.0, 0, 0.6, 0], 2: [0, 0.3, 0, 1.0]}


def composed(model: Model, amounts: dict[int, list[float]], nag_first: bool = False) -> Attend:
    """Attention, led to V by `amounts`, then NAG on what came out; or the other way round."""
    options = {**OPTIONS, "alpha": 0.125 if model.sd3 else 0.25}

    def attend(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        share = torch.tensor(amounts.get(index, [0.0] * 4)).to(q.dtype)[:, None]
        out = dense_attention(q, k, v)
        if nag_first and kind == "joint":
            return torch.lerp(nag_attention(out, layout, **options), v, share)
        out = torch.lerp(out, v, share)
        return nag_attention(out, layout, **options) if kind == "joint" else out

    return attend


@pytest.mark.parametrize("model", GUIDED.values(), ids=GUIDED.keys())
@with_and_without_cfg
def test_softpag_acts_before_nag(model, cfg):
    """SoftPAG perturbs attention (order 0), NAG guides what came of it (order 30), in whatever order they are listed."""
    passes, sigma = inputs(model, cfg)
    plain, x = Naive(model, passes), passes[0]["hidden_states"]
    call = passes[0]
    rows = {name: torch.cat([call[name]] * 2) for name in ("pooled_projections",)}
    text = call["encoder_hidden_states"]
    negative, _ = negative_said(model, text.shape[1])
    rows["encoder_hidden_states"] = torch.cat([text, negative.expand_as(text)])

    def velocity(amounts: dict[int, list[float]], nag_first: bool = False) -> Tensor:
        change = Change(composed(model, amounts, nag_first))
        return plain.cond(torch.cat([x, x]), sigma, change, **rows)[: len(x)]

    cond, perturbed = velocity({}), velocity(BLOCKS)
    assert (velocity(BLOCKS, nag_first=True) - perturbed).abs().flatten(1).amax(1).min() > 1e-2, "the order matters"
    delta, uncond = 1.5 * (cond - perturbed), plain.uncond(x, sigma)
    soft = SoftPAG(where=Where(heads="L1H0 L1H2 L2H1 L2H3"), u=(1.0, 0.6, 0.3, 1.0), strength=1.5)
    for controls in permutations([soft, NAG(prompt=NEGATIVE)]):
        positive, other = guided_call(model, list(controls), passes)
        torch.testing.assert_close(positive, cond + delta, atol=2e-6, rtol=2e-6)
        if uncond is not None:
            torch.testing.assert_close(other, uncond + delta, atol=2e-6, rtol=2e-6)


# ---------------------------------------------------------------- AdaIN's amount and the gate

HEADS = {"H1 H3": [0.0, 1.0, 0.0, 1.0], "H0": [1.0, 0.0, 0.0, 0.0]}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0, 2.0])
def test_strength_and_heads_gate_adain_together(heads, strength):
    """Chosen heads: AdaIN by min(strength, 1) and the odds by strength; the others attend as if there were no control."""
    amount, chosen = min(strength, 1.0), torch.tensor(HEADS[heads]).double()[:, None]

    def site(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, text: int) -> Tensor:
        own = aligned_site(adain=False, log_bias=-math.inf)(q, k, v, cos, sin, text)
        q, k = q.clone(), k.clone()
        for x in (q, k):
            x[1:, text:] = torch.lerp(x[1:, text:], adain(x[1:, text:], x[:1, text:]), amount)
        shared = aligned_site(adain=False, log_bias=math.log(strength))(q, k, v, cos, sin, text)
        return torch.lerp(own, shared, chosen)

    inputs = call_inputs()
    control = AlignedStyle(strength=strength, where=Where(blocks="single", heads=heads))
    torch.testing.assert_close(ours(control, inputs), naive(site, inputs, SINGLE), atol=2e-6, rtol=2e-6)


# ---------------------------------------------------------------- heads by row, beside added rows

SETS = ("L3H1", "L3H0 L4H2", "L4H3")
BESIDE: dict[str, list[Any]] = {
    "alone": [],
    "a picture": [NaiveSharing(where=Where(blocks="1-2"), reference=CAVE)],
    "two pictures": [AlignedStyle(where=Where(blocks="0-2"), reference=(CAVE, COIN))],
    "NAG": [NAG(prompt="an owl", where=Where(blocks="0-2"))],
    "a picture and NAG": [NAG(prompt="an owl", where=Where(blocks="0-2")), StyleAligned(where=Where(blocks="1-2"), reference=COIN)],
}  # fmt: skip


def rows_of_each(pipe: Any, beside: list[Any], sets: tuple[str, ...], latents_of: Any, **more: Any) -> Tensor:
    """Row i of a run in which all rows have the i-th set of heads."""
    rows = []
    for i, heads in enumerate(sets):
        with attached(pipe, [SoftPAG(where=Where(heads=heads), u=0.7), *beside]):
            rows.append(latents_of(pipe, n=len(sets), **{"steps": 2, **more})[i])
    return torch.stack(rows)


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
@pytest.mark.parametrize("cfg", [1.0, 2.0], ids=["", "CFG"])
def test_picture_i_has_the_heads_of_row_i_beside_added_rows(beside, cfg, pipe, latents_of):
    """What is read of the added rows comes from below the perturbed blocks, so that pictures are independent."""
    expected = rows_of_each(pipe, beside, SETS, latents_of, cfg=cfg)
    with attached(pipe, [SoftPAG(where=Where(blocks="3-4"), row_heads=SETS, u=0.7), *beside]):
        result = latents_of(pipe, n=3, steps=2, cfg=cfg)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    other = SETS[1:] + SETS[:1]
    assert (expected - rows_of_each(pipe, beside, other, latents_of, cfg=cfg)).abs().amax((1, 2)).min() > 1e-2


@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["", "CFG"])
@pytest.mark.parametrize("kind", ["a picture", "the set's first, copied"])
def test_picture_i_has_the_heads_of_row_i_on_sd3(kind, scale, latents_of):
    pipe, sets = tiny_sd3(), ("L2H1", "L1H0 L2H2", "L2H3")
    reference = COIN if kind == "a picture" else None
    beside = [AlignedStyle(where=Where(blocks="0"), reference=reference)]
    call = {"guidance_scale": scale, "steps": 1}  # in a second step the set would follow its first picture's heads
    expected = rows_of_each(pipe, beside, sets, latents_of, **call)
    with attached(pipe, [SoftPAG(where=Where(blocks="1-2"), row_heads=sets, u=0.7), *beside]):
        result = latents_of(pipe, n=3, **call)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("perturbing", [SoftPAG, PAG])
def test_nag_gives_each_negative_row_its_pictures_heads(perturbing, pipe, latents_of):
    """Where NAG reads the negative row above a perturbed head, picture i must not see the heads of picture 0."""
    beside = [NAG(prompt="an owl", where=EVERY)]
    expected = []
    for i, heads in enumerate(SETS):
        with attached(pipe, [perturbing(where=Where(blocks="3-4", heads=heads), u=0.7), *beside]):
            expected.append(latents_of(pipe, n=3, steps=1)[i])
    with attached(pipe, [perturbing(where=Where(blocks="3-4"), row_heads=SETS, u=0.7), *beside]):
        result = latents_of(pipe, n=3, steps=1)
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-4, rtol=1e-4)
