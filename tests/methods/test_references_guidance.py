"""The guidance references against the authors' own numbers (tests/data/headhunter.npz, nag.npz), torch and diffusers."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.models.attention_processor import PAGJointAttnProcessor2_0
from references import flux, sd3
from references.attention import dense_attention
from references.guidance import (
    Layout,
    Target,
    attention_map,
    axis_blur,
    blurred_query_map,
    identity_map,
    image_query_mean_map,
    image_rows,
    nag,
    nag_attention,
    perturbed_attention,
    query_mean_map,
    self_text_map,
    uniform_map,
)
from references.guidance_models import Change, flux_velocity, nag_attend, permutation, perturbing, plain, sd3_velocity
from references.guidance_sample import ProjectedGuidance, euler, guided
from test_references import bshd, gap, load
from test_references_sd3 import EXACT, qkv
from test_references_sd3 import inputs as sd3_inputs
from test_sharing_against_naive import call_inputs as flux_inputs
from tiny import tiny_sd3_transformer, tiny_transformer
from torch import Tensor, nn
from torch.nn import functional

TOL = 2e-5  # of the parity data's README
GRID = (4, 6)
SD3_FIRST, FLUX_FIRST = Layout(0, GRID), Layout(7, GRID)
LAYOUTS = pytest.mark.parametrize("layout", [SD3_FIRST, FLUX_FIRST], ids=["image first", "text first"])
HEADS = [0.0, 0.3, 1.0]
KINDS = ("joint", "dual")


# ---------------------------------------------------------------- perturbed attention

TARGETS = {
    "identity": identity_map,
    "uniform": uniform_map,
    "seg_all": query_mean_map,
    "seg_img": image_query_mean_map,
    "logit_ii_identity": self_text_map,
}


def test_headhunter_parity() -> None:
    """The authors' numbers, each by its own target and by no other, with the u and heads of the file's meta."""
    z, meta = load("headhunter")
    q, k, v = (bshd(z[x]) for x in "qkv")
    assert gap(bshd(dense_attention(q, k, v)), z["out_plain"]) < TOL
    assert len(meta["config"]) == 11
    for name, config in meta["config"].items():
        kind = name.removeprefix("out_").rsplit("_u", 1)[0]
        u = float(config["perturb_type"].split("@scale=")[1])
        heads = [u if head in config["perturb_heads"] else 0.0 for head in range(5)]
        for other, target in TARGETS.items():
            distance = gap(bshd(perturbed_attention(q, k, v, SD3_FIRST, target, heads)), z[name])
            assert distance < TOL if other == kind else distance > 1e-2, (name, other)


@LAYOUTS
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_perturbed_attention_by_hand(layout: Layout, target: Target) -> None:
    """The known short forms of each target; a head with u = 0 is plain, u between is a lerp of outputs."""
    q, k, v = qkv(2, length=31)
    image = (torch.arange(31) >= layout.start) & (torch.arange(31) < layout.start + 24)
    text = ~image
    full, normal = perturbed_attention(q, k, v, layout, target, [1.0] * 3), dense_attention(q, k, v)
    if target is identity_map:
        expected = v
    elif target is uniform_map:
        expected = v.mean(dim=1, keepdim=True).expand_as(v)
    elif target is query_mean_map:
        expected = dense_attention(q.mean(dim=1, keepdim=True), k, v).expand_as(v)
    elif target is image_query_mean_map:
        expected = normal.clone()
        expected[:, image] = dense_attention(q[:, image].mean(dim=1, keepdim=True), k, v)
    else:
        own = (q * k).sum(-1)[:, image] / 4
        others = torch.einsum("bqhd,bkhd->bqhk", q[:, image], k[:, text]) / 4
        chance = torch.sigmoid(own - others.logsumexp(dim=-1))[..., None]
        from_text = dense_attention(q[:, image], k[:, text], v[:, text])
        expected = normal.clone()
        expected[:, image] = chance * v[:, image] + (1 - chance) * from_text
    assert gap(full, expected) < 1e-12
    mixed = perturbed_attention(q, k, v, layout, target, HEADS)
    share = torch.tensor(HEADS, dtype=torch.float64)[:, None]
    assert gap(mixed, normal + share * (expected - normal)) < 1e-12
    rows = perturbed_attention(q, k, v, layout, image_rows(target), [1.0] * 3)
    assert gap(rows[:, image], full[:, image]) < 1e-12
    assert gap(rows[:, text], normal[:, text]) < 1e-12


def conv_blur(image: Tensor, sigma: float, taps: tuple[int, int]) -> Tensor:
    """[B, N, H, D] on GRID blurred by torch's reflect padding and a two-dimensional convolution."""
    kernels = []
    for n in taps:
        x = torch.arange(n, dtype=torch.float64) - n // 2
        kernels.append((-0.5 * (x / sigma) ** 2).exp() / (-0.5 * (x / sigma) ** 2).exp().sum())
    b, _, h, d = image.shape
    planes = image.permute(0, 2, 3, 1).reshape(b * h * d, 1, *GRID)
    pad = [taps[1] // 2, taps[1] // 2, taps[0] // 2, taps[0] // 2]
    out = functional.conv2d(functional.pad(planes, pad, mode="reflect"), torch.outer(*kernels)[None, None])
    return out.reshape(b, h, d, -1).permute(0, 3, 1, 2)


@LAYOUTS
@pytest.mark.parametrize(
    ("sigma", "taps"), [(0.5, (3, 3)), (0.55, (5, 5)), (1.0, (7, 7)), (1.3, (7, 9)), (2.0, (7, 11)), (9999.0, (7, 11))]
)
def test_seg_is_a_reflected_gaussian(layout: Layout, sigma: float, taps: tuple[int, int]) -> None:
    """ceil(6 sigma) made odd, and at most 2 * side - 1 along each axis; the image's queries alone."""
    q, k, v = qkv(2, 1, 31)
    blurred = q.clone()
    blurred[:, layout.image] = conv_blur(q[:, layout.image], sigma, taps)
    out = perturbed_attention(q, k, v, layout, blurred_query_map(sigma), [1.0] * 3)
    assert gap(out, dense_attention(blurred, k, v)) < 1e-12
    assert gap(out, dense_attention(q, k, v)) > 0.1


def test_seg_limits() -> None:
    q, k, _ = qkv(2, 2, 31)
    assert torch.equal(blurred_query_map(10000)(q, k, FLUX_FIRST), image_query_mean_map(q, k, FLUX_FIRST))
    assert gap(blurred_query_map(9999)(q, k, FLUX_FIRST), image_query_mean_map(q, k, FLUX_FIRST)) > 1e-3
    assert gap(blurred_query_map(1 / 6)(q, k, FLUX_FIRST), attention_map(q, k)) == 0
    assert axis_blur(1, 3.0).tolist() == [[1.0]]
    assert gap(axis_blur(5, 2.0).sum(dim=1), torch.ones(5).double()) < 1e-15


# ---------------------------------------------------------------- NAG


def nag_options(meta: dict, name: str) -> dict[str, float]:
    config = meta["config"]["phi" + name.split("_phi")[1]]
    return {"phi": config["nag_scale"], "tau": config["nag_tau"], "alpha": config["nag_alpha"]}


def test_nag_parity() -> None:
    """FLUX's file with L2; SD3's file and the authors' ComfyUI function with L1; both rows get the image."""
    z, meta = load("nag")
    flux_parts = [bshd(torch.cat([z[f"flux_double_{x}_pos"], z[f"flux_double_{x}_neg"]])) for x in "qkv"]
    outs = {
        "flux_double": (dense_attention(*flux_parts), FLUX_FIRST, 2),
        "flux_single": (torch.cat([z["flux_single_zpos"], z["flux_single_zneg"]])[:, :, None], FLUX_FIRST, 2),
        "sd3": (dense_attention(*(bshd(z[f"sd3_{x}"]) for x in "qkv")), SD3_FIRST, 1),
        "comfy": (torch.cat([z["comfy_zpos"], z["comfy_zneg"]])[:, :, None], SD3_FIRST, 1),
    }
    names = [name for name in z if "_out_" in name]
    assert len(names) == 12
    for name in names:
        family = name.split("_out_")[0]
        out, layout, norm = outs[family]
        text = slice(0, 7) if layout is FLUX_FIRST else slice(24, 31)
        part = slice(None) if family == "flux_single" else text if "_txt_" in name else layout.image
        for p in (1, 2):
            ours = nag_attention(out, layout, norm=p, **nag_options(meta, name)).flatten(2)
            assert torch.equal(ours[:1, layout.image], ours[1:, layout.image])
            distance = gap(ours[: len(z[name]), part], z[name])
            told_apart = "_txt_" not in name and "tau100" not in name
            assert distance < TOL if p == norm or not told_apart else distance > 0.05, name


def test_nag_by_hand() -> None:
    zpos, zneg = torch.tensor([[[3.0, -1.0]]]).double(), torch.tensor([[[1.0, 2.0]]]).double()
    # Z~ = 2 Z+ - Z- = (5, -4); L1: 9 against 4; tau 1.5 leaves 6; half of (10/3, -8/3) and half of (3, -1)
    out = nag(zpos, zneg, phi=2.0, tau=1.5, alpha=0.5)
    assert out.flatten().tolist() == pytest.approx([19 / 6, -11 / 6], abs=1e-6)
    size = math.sqrt(10) * 1.5 / math.sqrt(41)
    assert nag(zpos, zneg, 2.0, 1.5, 1.0, norm=2).flatten().tolist() == pytest.approx([5 * size, -4 * size], abs=1e-6)
    assert nag(zpos, zneg, 2.0, 2.5, 1.0).flatten().tolist() == pytest.approx([5.0, -4.0], abs=1e-6)
    assert torch.equal(nag(zpos, zneg, 7.0, 2.5, 0.0), zpos)
    assert nag(0 * zpos, 0 * zneg, 5.0, 2.5, 0.25).tolist() == [[[0.0, 0.0]]]
    assert gap(nag(zpos, zneg, 1.0, 2.5, 1.0), zpos) < 1e-6


# ---------------------------------------------------------------- whole models


def flux_case(**options) -> tuple[nn.Module, dict]:
    call = flux_inputs(rows=2) | ({"guidance": torch.tensor([3.5, 2.0]).double()} if options else {})
    return tiny_transformer(**options).double(), call


def sd3_case(**options) -> tuple[nn.Module, dict]:
    return tiny_sd3_transformer(**options).double(), sd3_inputs()


CASES = {
    "FLUX": (flux_case, flux_velocity),
    "FLUX distilled": (lambda: flux_case(guidance=True), flux_velocity),
    "SD3": (sd3_case, sd3_velocity),
    "SD3.5": (lambda: sd3_case(qk_norm="rms_norm", dual=(0, 1)), sd3_velocity),
}
cases = pytest.mark.parametrize(("build", "velocity"), CASES.values(), ids=CASES.keys())


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]


def sites_of(model: nn.Module) -> list[tuple[int, str]]:
    has = [KINDS if getattr(block, "attn2", None) else KINDS[:1] for block in blocks_of(model)]
    return [(i, kind) for i, kinds in enumerate(has) for kind in kinds]


@cases
@torch.no_grad()
def test_unchanged_walk_is_the_reference_forward(build: Callable, velocity: Callable) -> None:
    model, call = build()
    if velocity is sd3_velocity:
        expected = sd3.reference_forward(model, **call, **EXACT)
    else:
        expected = flux.reference_forward(model, **call, site_fn=flux.stock_rounding_site)
    assert torch.equal(velocity(model, call), expected)
    assert gap(expected, model(**call).sample) < 1e-10


@cases
@torch.no_grad()
def test_attention_gets_what_enters_the_softmax(build: Callable, velocity: Callable, monkeypatch) -> None:
    """q, k, v of every site are the stock model's own, rotation and qk-norm included, in its order of sites."""
    model, call = build()
    stock, ours, places = [], [], []
    sdpa = functional.scaled_dot_product_attention

    def record(query, key, value, **options):
        stock.append([bshd(x) for x in (query, key, value)])
        return sdpa(query, key, value, **options)

    def attend(index, kind, q, k, v, layout):
        ours.append([q, k, v])
        places.append((index, kind, q.shape[1], layout))
        return plain(index, kind, q, k, v, layout)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", record)
    model(**call)
    velocity(model, call, Change(attend))
    layout = Layout(5 if velocity is flux_velocity else 0, GRID)
    assert places == [(i, kind, 29 if kind == "joint" else 24, layout) for i, kind in sites_of(model)]
    for mine, theirs in zip(ours, stock, strict=True):
        assert max(gap(a, b.double()) for a, b in zip(mine, theirs, strict=True)) < 1e-10


@cases
@torch.no_grad()
def test_pag_is_values_passed_on(build: Callable, velocity: Callable, monkeypatch) -> None:
    """u = 1 of all heads: the stock model whose attention returns v at block 1, at one kind or at both."""
    model, call = build()
    sites = sites_of(model)
    sdpa = functional.scaled_dot_product_attention
    for kinds in (KINDS, ("joint",), ("dual",)):
        order = iter(sites)

        def passing(query, key, value, order=order, kinds=kinds, **options):
            index, kind = next(order)
            return value if index == 1 and kind in kinds else sdpa(query, key, value, **options)

        monkeypatch.setattr(functional, "scaled_dot_product_attention", passing)
        expected = model(**call).sample
        out = velocity(model, call, Change(perturbing(identity_map, {1: [1.0] * 4}, kinds)))
        assert gap(out, expected) < 1e-10
        changed = "joint" in kinds or (1, "dual") in sites
        assert (gap(out, velocity(model, call)) > 1e-2) == changed


@torch.no_grad()
def test_self_text_is_diffusers_pag_on_sd3() -> None:
    """diffusers' processor at block 1 perturbs the second half of a doubled batch."""
    model, call = sd3_case()
    ours = sd3_velocity(model, call, Change(perturbing(self_text_map, {1: [1.0] * 4})))
    model.transformer_blocks[1].attn.set_processor(PAGJointAttnProcessor2_0())
    doubled = {name: torch.cat([x, x]) for name, x in call.items()}
    expected = model(**doubled).sample
    assert gap(ours, expected[2:]) < 1e-10
    assert gap(expected[:2], expected[2:]) > 1e-2


@cases
@pytest.mark.parametrize("skip", [{0}, {1}, {2}, {0, 2}])
@torch.no_grad()
def test_slg_is_the_model_without_the_block(build: Callable, velocity: Callable, skip: set[int]) -> None:
    model, call = build()
    ours, whole = velocity(model, call, Change(skip=skip)), velocity(model, call)
    if velocity is sd3_velocity:
        expected = model(**call, skip_layers=list(skip)).sample
    else:
        for index in sorted(skip, reverse=True):
            streams = model.transformer_blocks, model.single_transformer_blocks
            del streams[index >= 2][index - 2 * (index >= 2)]
        expected = model(**call).sample
    assert gap(ours, expected) < 1e-10
    assert gap(ours, whole) > 1e-2


@cases
@torch.no_grad()
def test_tpg_is_a_hook_on_the_blocks_input(build: Callable, velocity: Callable) -> None:
    model, call = build()
    orders = {block: permutation(3, 1, block, 24) for block in (0, 2)}
    ours = velocity(model, call, Change(permute=orders))
    assert gap(ours, velocity(model, call)) > 1e-2
    for index, order in orders.items():

        def permute(module, args, kwargs, order=order):
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:, order]}

        blocks_of(model)[index].register_forward_pre_hook(permute, with_kwargs=True)
    assert gap(ours, model(**call).sample) < 1e-10


def test_permutations() -> None:
    expected = torch.randperm(24, generator=torch.Generator().manual_seed(2 * 1000003 + 5 * 1009 + 7))
    assert torch.equal(permutation(2, 5, 7, 24), expected)
    near = [permutation(*key, 24).tolist() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len({tuple(order) for order in near}) == 4
    assert all(sorted(order) == list(range(24)) for order in near)


@cases
@torch.no_grad()
def test_nag_in_a_model(build: Callable, velocity: Callable) -> None:
    """Rows of one text are plain; with two texts and one pooled text both image streams stay the same to the end."""
    model, call = build()
    call = {name: x[[0, 0]] if len(x) == 2 else x for name, x in call.items()}
    options = {"phi": 5.0, "tau": 2.5, "alpha": 0.25}
    everywhere = Change(nag_attend(range(9), **options))
    assert gap(velocity(model, call, everywhere), velocity(model, call)) < 1e-5
    call["encoder_hidden_states"] = call["encoder_hidden_states"] * torch.tensor([1.0, -1.0])[:, None, None]
    usual, out = velocity(model, call), velocity(model, call, everywhere)
    assert gap(out[:1], out[1:]) < 1e-10
    assert gap(out[:1], usual[:1]) > 1e-2
    assert gap(usual[:1], usual[1:]) > 1e-2
    assert gap(velocity(model, call, Change(nag_attend([0], **options)))[:1], out[:1]) > 1e-3
    assert torch.equal(velocity(model, call, Change(nag_attend([], **options))), usual)
    call["pooled_projections"] = call["pooled_projections"] * torch.tensor([1.0, -1.0])[:, None]
    apart, both = (velocity(model, call, Change(nag_attend(range(9), k, **options))) for k in (("joint",), KINDS))
    assert gap(apart[:1], apart[1:]) > 1e-2
    assert (gap(apart, both) > 1e-2) == ((0, "dual") in sites_of(model))


# ---------------------------------------------------------------- combining


def test_guided() -> None:
    c, u, p, r = (torch.tensor([x]) for x in (1.0, 0.25, 0.5, -1.0))
    assert guided(c, [(3.0, p)]).item() == 2.5
    assert guided(c, [(3.0, p), (2.0, r)], u, 4.0).item() == 0.25 + 4 * 0.75 + 1.5 + 4.0
    assert guided(c, [], u, 4.0).item() == 3.25


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_apg_is_diffusers_on_the_denoised(shape: tuple[int, ...], eta: float) -> None:
    """Three steps with momentum and a norm that clips one row of two; diffusers works in the space it is given."""
    g = torch.Generator().manual_seed(0)
    ours, buffer = ProjectedGuidance(4.0, eta, -0.5, 3.0), MomentumBuffer(-0.5)
    for sigma in (1.0, 0.6, 0.3):
        x, cond, uncond = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
        uncond[1] = cond[1] + 0.1 * uncond[1]
        clean = [x - sigma * v for v in (cond, uncond)]
        theirs = normalized_guidance(*clean, 3.0, buffer, eta, 3.0, use_original_formulation=True)
        assert gap(x - sigma * ours(x, sigma, cond, uncond), theirs) < 1e-12
        assert ours.average.norm(dim=1)[1] < 3.0
    whole, rows = ProjectedGuidance(4.0, eta, 0.0, 6.0), ProjectedGuidance(4.0, eta, 0.0, 6.0)
    assert gap(whole(x, 0.5, cond, uncond)[1:], rows(x[1:], 0.5, cond[1:], uncond[1:])) < 1e-12


def test_apg_reduces_to_cfg() -> None:
    g = torch.Generator().manual_seed(1)
    x, cond, uncond = (torch.randn(2, 5, 4, generator=g, dtype=torch.float64) for _ in range(3))
    cfg = guided(cond, [], uncond, 4.0)
    for threshold in (0.0, 1e3):
        assert gap(ProjectedGuidance(4.0, eta=1.0, norm_threshold=threshold)(x, 0.7, cond, uncond), cfg) < 1e-12
    assert gap(ProjectedGuidance(4.0, eta=1.0, norm_threshold=2.0)(x, 0.7, cond, uncond), cfg) > 0.1
    assert gap(ProjectedGuidance(1.0)(x, 0.7, cond, uncond), cond) < 1e-12
    moved = cond - ProjectedGuidance(4.0)(x, 0.7, cond, uncond)
    assert (moved * (x - 0.7 * cond)).sum(dim=(1, 2)).abs().max() < 1e-12


def test_euler() -> None:
    """A constant velocity goes the whole way; step and noise level are those of the step's beginning."""
    seen = []

    def velocity(step: int, sigma: float, x: Tensor) -> Tensor:
        seen.append((step, sigma))
        return torch.tensor([2.0])

    assert euler(velocity, torch.tensor([1.0]), torch.tensor([1.0, 0.5, 0.25, 0.0])).item() == -1.0
    assert seen == [(0, 1.0), (1, 0.5), (2, 0.25)]
