"""The naive references against the papers' own numbers (tests/data, see each file's meta) and diffusers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from references.attention import (
    adain,
    alignedgen_attention,
    apply_rope,
    decreasing_lambda,
    dense_attention,
    stylealigned_attention,
)
from references.flux import image_ids, plain_site, reference_forward, rope_table, stock_rounding_site
from references.sample import Condition, reference_sample
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

DATA = Path(__file__).parents[1] / "data"
TEXT = 7  # text tokens of the AlignedGen arrays; the image is 4 x 6
AG_TOL, SA_TOL = 2e-5, 1e-4  # the tolerances of the parity data's README


def load(name: str) -> tuple[dict[str, Tensor], dict]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        meta = json.loads(str(z["meta"]))
        arrays = {key: torch.from_numpy(z[key]) for key in z.files if key != "meta"}
    return {key: a.double() if a.is_floating_point() else a for key, a in arrays.items()}, meta


@pytest.fixture(scope="module")
def ag() -> dict[str, Tensor]:
    return load("alignedgen_attention")[0]


@pytest.fixture(scope="module")
def sa() -> dict[str, Tensor]:
    return load("stylealigned")[0]


def bshd(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def tables(ag: dict[str, Tensor], prefix: str = "") -> list[Tensor]:
    return [ag[f"{prefix}{n}"] for n in ("rope_cos", "rope_sin", "ref_rope_cos", "ref_rope_sin")]


def qkv(ag: dict[str, Tensor], name: str = "single") -> list[Tensor]:
    return [bshd(ag[f"{name}_{x}"]).clone() for x in "qkv"]


# ---------------------------------------------------------------- basic pieces


def test_dense_attention_is_sdpa() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 8, generator=g, dtype=torch.float64) for n in (5, 9, 9))
    bias = torch.randn(2, 1, 5, 9, generator=g, dtype=torch.float64).masked_fill(torch.arange(9) % 4 == 1, -math.inf)
    for b in (None, bias):
        expected = bshd(scaled_dot_product_attention(bshd(q), bshd(k), bshd(v), attn_mask=b))
        assert gap(dense_attention(q, k, v, b), expected) < 1e-13


def test_rope_tables_and_shiftpe(ag: dict[str, Tensor]) -> None:
    """Tables match the saved ones; ShiftPE moves columns by the packed width: one constant rotation."""
    assert torch.equal(ag["ids"][TEXT:].float(), image_ids(4, 6))
    assert torch.equal(ag["ref_ids"].float(), image_ids(4, 6, column_shift=6))
    for ids, cos, sin in (("ids", "rope_cos", "rope_sin"), ("ref_ids", "ref_rope_cos", "ref_rope_sin")):
        table = rope_table(ag[ids], (4, 6, 6))
        assert max(gap(table[0].double(), ag[cos]), gap(table[1].double(), ag[sin])) < 1e-7
    k = bshd(ag["single_k"])[:, TEXT:]
    exact = [rope_table(ids, (4, 6, 6), round_to=torch.float64) for ids in (image_ids(4, 6), image_ids(4, 6, 6))]
    constant = rope_table(torch.tensor([[0.0, 0.0, 6.0]] * 24), (4, 6, 6), round_to=torch.float64)
    assert gap(apply_rope(apply_rope(k, *exact[0]), *constant), apply_rope(k, *exact[1])) < 1e-13


def test_apply_rope_is_diffusers_to_the_bit_in_float32(ag: dict[str, Tensor]) -> None:
    q, (cos, sin, *_) = bshd(ag["single_q"]), tables(ag)
    stock = transformer_flux.apply_rotary_emb(q, (cos.float(), sin.float()), sequence_dim=1)
    assert torch.equal(apply_rope(q, cos.float(), sin.float(), torch.float32), stock)
    assert 0 < gap(apply_rope(q, cos, sin), stock) < 1e-6


# ---------------------------------------------------------------- AlignedGen


@pytest.mark.parametrize("x", ["q", "k"])
def test_alignedgen_adain(ag: dict[str, Tensor], x: str) -> None:
    """Image tokens only, before RoPE; what is left against the authors' float32 is no biased variance."""
    tokens, saved = bshd(ag[f"single_{x}"])[:, TEXT:], bshd(ag[f"adain_{x}_img"])
    ours, biased = adain(tokens, tokens[:1]), adain(tokens, tokens[:1], unbiased=False)
    assert gap(ours, saved) < 1e-6
    direction = biased - ours
    share_of_bias = ((saved - ours) * direction).sum() / direction.square().sum()
    assert abs(share_of_bias) < 0.1  # 0: unbiased, 1: biased


def test_alignedgen_operands(ag: dict[str, Tensor]) -> None:
    """What the authors hand to SDPA: AdaIN, then RoPE, then lambda, and lambda on the appended keys only."""
    cos, sin, ref_cos, ref_sin = tables(ag)
    q, k, v = qkv(ag)
    q[:, TEXT:], k[:, TEXT:] = adain(q[:, TEXT:], q[:1, TEXT:]), adain(k[:, TEXT:], k[:1, TEXT:])
    assert gap(apply_rope(q, cos, sin), bshd(ag["single_query_rotated"])) < AG_TOL
    keys = bshd(ag["single_keys_full"])
    copy = apply_rope(k[:1, TEXT:], ref_cos, ref_sin)
    assert gap(keys[:, :31], apply_rope(k, cos, sin)) < AG_TOL
    assert gap(keys[1:, 31:], 1.1 * copy.expand(2, -1, -1, -1)) < AG_TOL
    assert gap(keys[:1, 31:], copy) < AG_TOL  # row 0's own copy is never scaled
    assert gap(bshd(ag["single_values_full"]), torch.cat([v, v[:1, TEXT:].expand(3, -1, -1, -1)], dim=1)) == 0


@pytest.mark.parametrize(
    ("saved", "inputs", "kwargs"),
    [
        ("single_out_lambda1p1_constrain", "single", {"lambda_": 1.1}),
        ("single_out_lambda1p0_constrain", "single", {"lambda_": 1.0}),
        ("single_out_lambda0p9_constrain", "single", {"lambda_": 0.9}),
        ("single_out_lambda1p1_free", "single", {"lambda_": 1.1, "ref_sees_copy": True}),
        ("single_out_decrease_t500", "single", {"lambda_": decreasing_lambda(500.0)}),
        ("double_out", "double", {"lambda_": 1.1}),
        ("h24_out", "h24", {"lambda_": 1.1}),
    ],
)
def test_alignedgen_parity(ag: dict[str, Tensor], saved: str, inputs: str, kwargs: dict) -> None:
    table = tables(ag, "h24_" if inputs == "h24" else "")
    out = alignedgen_attention(*qkv(ag, inputs), *table, TEXT, **kwargs).flatten(2)
    assert gap(out, ag[saved]) < AG_TOL


def test_alignedgen_tolerance_tells_variants_apart(ag: dict[str, Tensor]) -> None:
    cos, sin, ref_cos, ref_sin = tables(ag)
    saved = ag["single_out_lambda1p1_constrain"]

    def distance(ref_tables: tuple[Tensor, Tensor] = (ref_cos, ref_sin), **kwargs) -> float:
        out = alignedgen_attention(*qkv(ag), cos, sin, *ref_tables, TEXT, **kwargs)
        return gap(out.flatten(2), saved)

    assert distance(lambda_=1.1) < AG_TOL
    assert distance((cos[TEXT:], sin[TEXT:]), lambda_=1.1) > 0.5  # no ShiftPE
    assert distance(lambda_=1.0) > 0.5
    assert distance(lambda_=1.0, log_bias=math.log(1.1)) > 0.5  # lambda is no additive bias
    assert distance(lambda_=1.1, adain=False) > 0.5
    assert distance(lambda_=1.1, ref_sees_copy=True) > 0.5


def test_alignedgen_off_is_plain_attention(ag: dict[str, Tensor]) -> None:
    """`off`, and the released code's silent stop at step 30 (a known fault), are plain attention."""
    cos, sin, ref_cos, ref_sin = tables(ag)
    q, k, v = qkv(ag)
    plain = plain_site(0, q, k, v, cos, sin, TEXT)
    assert gap(plain.flatten(2), ag["single_out_off"]) < AG_TOL
    assert torch.equal(ag["single_out_off"], ag["single_out_step30"])
    hidden = torch.zeros(1, 1, 1, 24, dtype=torch.bool)
    args = (q, k, v, cos, sin, ref_cos, ref_sin, TEXT)
    assert gap(alignedgen_attention(*args, adain=False, share_mask=hidden), plain) < 1e-13
    assert gap(alignedgen_attention(*args, adain=False, log_bias=-math.inf), plain) < 1e-13
    one = [x[:1] for x in (q, k, v)]
    assert gap(alignedgen_attention(*one, cos, sin, ref_cos, ref_sin, TEXT), plain[:1]) < 1e-13


def test_alignedgen_reference_row_is_untouched_wherever_it_is(ag: dict[str, Tensor]) -> None:
    q, k, v = qkv(ag)
    order = torch.tensor([2, 0, 1])
    out = alignedgen_attention(q, k, v, *tables(ag), TEXT, 1.1)
    moved = alignedgen_attention(q[order], k[order], v[order], *tables(ag), TEXT, 1.1, ref_row=1)
    assert gap(moved, out[order]) < 1e-13
    plain = plain_site(0, q, k, v, *tables(ag)[:2], TEXT)
    assert gap(out[:1], plain[:1]) < 1e-13
    assert gap(out[1:], plain[1:]) > 0.5


def test_alignedgen_log_bias_and_share_mask(ag: dict[str, Tensor]) -> None:
    """Log-bias log 2 is a second copy of the shared keys; a masked token is an absent one."""
    cos, sin, ref_cos, ref_sin = tables(ag)
    q, k, v = qkv(ag)
    keep = torch.arange(24) % 3 != 0
    out = alignedgen_attention(
        q, k, v, cos, sin, ref_cos, ref_sin, TEXT, 1.1, adain=False, log_bias=math.log(2.0), share_mask=keep
    )
    copy = 1.1 * apply_rope(k[:1, TEXT:], ref_cos, ref_sin)[:, keep]
    for row in (1, 2):
        keys = torch.cat([apply_rope(k[row : row + 1], cos, sin), copy, copy], dim=1)
        values = torch.cat([v[row : row + 1], v[:1, TEXT:][:, keep], v[:1, TEXT:][:, keep]], dim=1)
        expected = dense_attention(apply_rope(q[row : row + 1], cos, sin), keys, values)
        assert gap(out[row : row + 1], expected) < 1e-12


# ---------------------------------------------------------------- StyleAligned


def test_stylealigned_adain_is_unbiased(sa: dict[str, Tensor]) -> None:
    q = bshd(sa["q"])
    assert gap(q.mean(dim=1, keepdim=True), bshd(sa["q_mean"])) < 1e-6
    assert gap((q.var(dim=1, keepdim=True, correction=1) + 1e-5).sqrt(), bshd(sa["q_std"])) < 1e-6
    assert gap((q.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt(), bshd(sa["q_std"])) > 0.1
    for x in "qk":
        tokens, ref = bshd(sa[x]), bshd(sa[x])[[0, 0, 0, 3, 3, 3]]
        assert gap(adain(tokens, ref), bshd(sa[f"adain_{x}"])) < 1e-5
    keys = bshd(sa["concat_k_scale1p2"])  # [own ; reference], the latter scaled in the other rows
    own = bshd(sa["adain_k"])
    factor = torch.tensor([1.0, 1.2, 1.2, 1.0, 1.2, 1.2], dtype=torch.float64)[:, None, None, None]
    assert gap(keys, torch.cat([own, own[[0, 0, 0, 3, 3, 3]] * factor], dim=1)) < 1e-5


STYLEALIGNED = {
    "default": {},
    "scale1p2": {"score_scale": 1.2},
    "scale0p5": {"score_scale": 0.5},
    "shift_log2": {"score_shift": math.log(2.0)},
    "scale0p5_shift0p7": {"score_scale": 0.5, "score_shift": 0.7},
    "no_adain": {"adain_q": False, "adain_k": False},
    "adain_only": {"share": False},
    "adain_qkv": {"adain_v": True},
    "full_share": {"full_share": True, "adain_q": False, "adain_k": False},
}


@pytest.mark.parametrize("name", STYLEALIGNED)
@pytest.mark.parametrize("ref_sees_copy", [False, True])
def test_stylealigned_parity(sa: dict[str, Tensor], name: str, ref_sees_copy: bool) -> None:
    """The reference's view of its own unscaled duplicate is a no-op: both ways give the saved numbers."""
    kwargs = STYLEALIGNED[name] | {"ref_sees_copy": ref_sees_copy}
    q, k, v = (bshd(sa[x]) for x in "qkv")
    out = stylealigned_attention(q, k, v, groups=2, **kwargs)
    assert gap(out.flatten(2), sa[f"out_{name}"]) < SA_TOL
    plain = torch.cat(
        [stylealigned_attention(*(x[rows] for x in (q, k, v)), **kwargs) for rows in ([0, 1, 2], [3, 4, 5])]
    )
    assert gap(plain, out) < 1e-13  # a plain batch is one half of the doubled one


def test_stylealigned_known_faults(sa: dict[str, Tensor]) -> None:
    """Faults we do not share: full sharing that drops AdaIN, scale and shift; a guessed doubled batch."""
    q, k, v = (bshd(sa[x]) for x in "qkv")
    assert torch.equal(sa["out_full_share"], sa["out_full_share_scale_shift"])
    full = stylealigned_attention(q, k, v, groups=2, full_share=True, score_scale=1.2, score_shift=0.7)
    assert gap(full.flatten(2), sa["out_full_share_scale_shift"]) > 0.5
    default = stylealigned_attention(q, k, v, groups=2)
    assert gap(stylealigned_attention(q, k, v)[3:], default[3:]) > 0.5
    with pytest.raises(ValueError, match="groups"):
        stylealigned_attention(q[:3], k[:3], v[:3], groups=2)


def test_stylealigned_shift_doubles_the_odds_and_keeps_text(sa: dict[str, Tensor]) -> None:
    """exp(shift) copies of the reference's image keys, rotated after AdaIN; text not shared or normalised."""
    q, k, v = (bshd(sa[x])[:2] for x in "qkv")
    text = 5
    table = rope_table(image_ids(4, 6), (4, 6, 6))

    def rotate(x: Tensor) -> Tensor:
        return apply_rope(x, *table)

    out = stylealigned_attention(q, k, v, score_shift=math.log(2.0), text_len=text, rotate=rotate)
    qa, ka = q.clone(), k.clone()
    qa[1:, text:], ka[1:, text:] = adain(q[1:, text:], q[:1, text:]), adain(k[1:, text:], k[:1, text:])
    qa, ka = rotate(qa), rotate(ka)
    keys = torch.cat([ka[1:], ka[:1, text:], ka[:1, text:]], dim=1)
    values = torch.cat([v[1:], v[:1, text:], v[:1, text:]], dim=1)
    assert gap(out[1:], dense_attention(qa[1:], keys, values)) < 1e-12
    assert gap(out[:1], dense_attention(rotate(q[:1]), rotate(k[:1]), v[:1])) < 1e-12


# ---------------------------------------------------------------- FLUX forward and sampling


def tiny_flux(guidance: bool = False, seed: int = 0) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.double().eval()


def flux_inputs(guidance: bool = False, rows: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(rows, 24, 8, generator=g, dtype=torch.float64),
        "encoder_hidden_states": torch.randn(rows, 5, 12, generator=g, dtype=torch.float64),
        "pooled_projections": torch.randn(rows, 10, generator=g, dtype=torch.float64),
        "timestep": torch.linspace(0.3, 0.9, rows, dtype=torch.float64),
        "img_ids": image_ids(4, 6),
        "txt_ids": torch.zeros(5, 3),
    }
    return inputs | ({"guidance": torch.full((rows,), 3.5, dtype=torch.float64)} if guidance else {})


@pytest.mark.parametrize("guidance", [False, True])
@torch.no_grad()
def test_reference_forward_is_stock(guidance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-10 against the untouched model (float32 rotation) and against one that rotates in float64."""
    model, inputs = tiny_flux(guidance), flux_inputs(guidance)
    stock = model(**inputs).sample
    assert stock.abs().mean() > 0.05
    assert gap(reference_forward(model, **inputs, site_fn=stock_rounding_site), stock) < 1e-10
    ours = reference_forward(model, **inputs)
    assert gap(ours, stock) < 1e-5

    def rotate_in_float64(x: Tensor, table: tuple[Tensor, Tensor], sequence_dim: int) -> Tensor:
        angles = torch.complex(table[0].double(), table[1].double())[None, :, None, ::2]
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * angles).flatten(-2)

    monkeypatch.setattr(transformer_flux, "apply_rotary_emb", rotate_in_float64)
    assert gap(ours, model(**inputs).sample) < 1e-10


@torch.no_grad()
def test_site_fn_sees_every_block_and_decides_it() -> None:
    model, inputs = tiny_flux(), flux_inputs()
    stock, seen = reference_forward(model, **inputs), []
    ref_table = rope_table(image_ids(4, 6, column_shift=6), (4, 6, 6))

    def site(index: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, text_len: int) -> Tensor:
        seen.append((index, tuple(q.shape), tuple(cos.shape), text_len))
        if index < 2:
            return plain_site(index, q, k, v, cos, sin, text_len)
        return alignedgen_attention(q, k, v, cos, sin, *ref_table, text_len)

    out = reference_forward(model, **inputs, site_fn=site)
    assert seen == [(i, (3, 29, 3, 16), (29, 16), 5) for i in range(5)]
    assert gap(out[:1], stock[:1]) < 1e-12
    assert min(gap(out[i], stock[i]) for i in (1, 2)) > 1e-3


@pytest.mark.parametrize(("true_cfg", "guidance"), [(1.0, 3.5), (2.5, None)])
def test_reference_sample_is_the_pipeline(true_cfg: float, guidance: float | None) -> None:
    """Three steps of the stock FluxPipeline (its scheduler steps in float32, hence 1e-5)."""
    model, inputs = tiny_flux(guidance is not None), flux_inputs(rows=2)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler, None, None, None, None, None, model)
    pipe.set_progress_bar_config(disable=True)
    prompts = (inputs["encoder_hidden_states"], inputs["pooled_projections"])
    negatives = tuple(-0.7 * x for x in prompts)
    stock = pipe(
        prompt_embeds=prompts[0],
        pooled_prompt_embeds=prompts[1],
        negative_prompt_embeds=negatives[0],
        negative_pooled_prompt_embeds=negatives[1],
        true_cfg_scale=true_cfg,
        guidance_scale=guidance or 1.0,
        num_inference_steps=3,
        height=64,
        width=96,
        latents=inputs["hidden_states"],
        output_type="latent",
    ).images
    calls: list[tuple[int, str]] = []

    def factory(step: int, sigma: float, which: str):
        calls.append((step, which))
        return plain_site

    cond, uncond = (Condition(*p, inputs["txt_ids"], inputs["img_ids"], guidance) for p in (prompts, negatives))
    ours = reference_sample(
        model, scheduler.sigmas, inputs["hidden_states"], cond, uncond, true_cfg, site_fn_factory=factory
    )
    assert gap(ours, stock.double()) < 1e-5 * stock.abs().max()
    assert gap(stock.double(), inputs["hidden_states"]) > 0.1
    passes = ("cond", "uncond") if true_cfg > 1 else ("cond",)
    assert calls == [(step, which) for step in range(3) for which in passes]
    zeroed = reference_sample(
        model, scheduler.sigmas, inputs["hidden_states"], cond, before_step=lambda i, s, x: x * (i < 2)
    )
    last = reference_sample(model, scheduler.sigmas[2:], torch.zeros_like(ours), cond)
    assert gap(zeroed, last) < 1e-12
