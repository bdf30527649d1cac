"""The SD3 references against diffusers, and its shared attention against formulas written out once more."""

import math

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from references.attention import adain, dense_attention
from references.sd3 import SiteFn, crop_positions, reference_forward, sincos_table
from references.sd3_sharing import alignedgen_sd3, image_first, mirrored_attention, stylealigned_sd3, text_first
from test_references import gap
from tiny import tiny_sd3, tiny_sd3_transformer
from torch import Tensor

VERSIONS = {"SD3": {}, "qk-norm": {"qk_norm": "rms_norm"}, "SD3.5": {"qk_norm": "rms_norm", "dual": (0, 1)}}
EXACT = {"norm_dtype": torch.float32}  # diffusers' RMSNorm squares in float32 in a float64 model too
TEXT, IMAGE = 5, 24

versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS.keys())


def inputs(rows: int = 2, grid: tuple[int, int] = (4, 6)) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {
        "hidden_states": (16, 2 * grid[0], 2 * grid[1]),
        "encoder_hidden_states": (TEXT, 16),
        "pooled_projections": (16,),
    }
    drawn = {name: torch.randn(rows, *shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    return drawn | {"timestep": torch.linspace(300, 900, rows, dtype=torch.float64)}


def qkv(rows: int, seed: int = 0, length: int = IMAGE + TEXT) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, length, 3, 16, generator=g, dtype=torch.float64) for _ in range(3)]


# ---------------------------------------------------------------- SD3 forward


@versions
@pytest.mark.parametrize("skip", [None, [0], [1], [2], [0, 2]])
@pytest.mark.parametrize("grid", [(4, 6), (8, 8), (24, 3)])
@torch.no_grad()
def test_reference_forward_is_stock(version: dict, skip: list[int] | None, grid: tuple[int, int]) -> None:
    model, call = tiny_sd3_transformer(**version).double(), inputs(grid=grid)
    stock = model(**call, skip_layers=skip).sample
    assert stock.abs().mean() > 0.1
    assert gap(reference_forward(model, **call, skip_layers=skip, **EXACT), stock) < 1e-10
    if skip:
        assert gap(model(**call).sample, stock) > 1e-2


@versions
@torch.no_grad()
def test_reference_forward_without_float32_squares(version: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is the stock model up to its RMSNorm's float32, and to 1e-10 where that squares in float64."""
    model, call = tiny_sd3_transformer(**version).double(), inputs()
    ours = reference_forward(model, **call)
    assert gap(ours, model(**call).sample) < 1e-5
    monkeypatch.setattr(RMSNorm, "forward", lambda m, x: torch.nn.functional.rms_norm(x, m.dim, m.weight, m.eps))
    assert gap(ours, model(**call).sample) < 1e-10


def test_sincos_table_is_the_models_buffer() -> None:
    table = sincos_table(24, 64, 8)
    model = tiny_sd3_transformer()
    assert gap(table, model.pos_embed.pos_embed[0].reshape(24, 24, 64).double()) < 1e-6  # its angles are float32
    assert gap(crop_positions(table, (4, 6)), model.pos_embed.cropped_pos_embed(8, 12)[0].double()) < 1e-6
    assert torch.equal(crop_positions(table, (4, 6), (2, 5))[7], table[13, 15])  # row 1, column 1 of a window at 12, 14


@versions
@pytest.mark.parametrize("shift", [(0, 6), (4, 0), (-3, 2)])
@torch.no_grad()
def test_shifted_rows_see_a_rolled_table(version: dict, shift: tuple[int, int]) -> None:
    model, call = tiny_sd3_transformer(**version).double(), inputs(rows=3)
    plain = model(**call).sample
    ours = reference_forward(model, **call, position_shift={1: shift}, **EXACT)
    listed = reference_forward(model, **call, position_shift=[(0, 0), shift, (0, 0)], **EXACT)
    table = model.pos_embed.pos_embed
    back = tuple(-s for s in shift)
    table.copy_(table.reshape(24, 24, -1).roll(back, (0, 1)).reshape(table.shape))
    moved = model(**call).sample
    assert gap(ours[[0, 2]], plain[[0, 2]]) < 1e-10
    assert gap(ours[1], moved[1]) < 1e-10
    assert gap(moved[1], plain[1]) > 0.1
    assert torch.equal(ours, listed)


def test_a_window_outside_the_table_is_refused() -> None:
    model, call = tiny_sd3_transformer().double(), inputs(grid=(8, 8))
    with torch.no_grad():
        reference_forward(model, **call, position_shift={0: (8, -8)})
    for shift in ((0, 9), (-9, 0)):
        with pytest.raises(ValueError, match="not inside"):
            reference_forward(model, **call, position_shift={0: shift})


@torch.no_grad()
def test_site_fn_sees_every_attention_and_decides_it() -> None:
    model, call = tiny_sd3_transformer("rms_norm", (0, 1)).double(), inputs()
    seen: list[tuple] = []

    def silencing(silent: tuple[int, str] | None) -> SiteFn:
        def site(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, image_len: int) -> Tensor:
            seen.append((index, kind, q.shape, image_len))
            return dense_attention(q, k, v) * ((index, kind) != silent)

        return site

    stock = reference_forward(model, **call)
    assert torch.equal(reference_forward(model, **call, site_fn=silencing(None)), stock)
    joint, dual = (2, IMAGE + TEXT, 4, 16), (2, IMAGE, 4, 16)
    assert seen == [
        (0, "joint", joint, IMAGE), (0, "dual", dual, IMAGE), (1, "joint", joint, IMAGE),
        (1, "dual", dual, IMAGE), (2, "joint", joint, IMAGE),
    ]  # fmt: skip
    for silent in [(0, "joint"), (0, "dual"), (1, "dual"), (2, "joint")]:
        assert gap(reference_forward(model, **call, site_fn=silencing(silent)), stock) > 1e-2


@versions
def test_tiny_pipeline_runs(version: dict) -> None:
    pipe = tiny_sd3(**version)
    call = {"prompt": ["a fox", "a teapot"], "num_inference_steps": 2, "max_sequence_length": 12}
    latents = pipe(**call, output_type="latent", generator=torch.Generator().manual_seed(0)).images
    assert latents.shape == (2, 16, 16, 16)
    assert latents.isfinite().all()
    assert pipe(**call).images[0].size == (64, 64)


# ---------------------------------------------------------------- sharing in the order [image | text]


def test_token_orders() -> None:
    x = torch.arange(5.0)[None, :, None, None]
    assert text_first(x, 3).flatten().tolist() == [3, 4, 0, 1, 2]
    assert torch.equal(image_first(text_first(x, 3), 3), x)


def by_hand(q: Tensor, k: Tensor, v: Tensor, row: int, ref: int, source: int, scale: float, bias: float) -> Tensor:
    """One target row with AdaIN on q and k: exp(bias) copies of the shared keys, written as weights."""
    own_q, own_k = q[row].clone(), k[row].clone()
    for x, everyone in ((own_q, q), (own_k, k)):
        x[:IMAGE] = adain(x[None, :IMAGE], everyone[ref, :IMAGE][None])[0]
    keys = torch.cat([own_k, scale * k[source, :IMAGE]])
    values = torch.cat([v[row], v[source, :IMAGE]])
    weights = torch.tensor([1.0] * len(own_k) + [math.exp(bias)] * IMAGE, dtype=torch.float64)
    scores = (torch.einsum("qhd,khd->hqk", own_q, keys) / 4).exp() * weights
    return torch.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdim=True), values)


@pytest.mark.parametrize("text", [TEXT, 0])
@pytest.mark.parametrize("groups", [1, 2])
def test_sharing_on_sd3_by_hand(groups: int, text: int) -> None:
    """Reference rows 0 and n are plain; targets follow the reference of their half; text is its own."""
    q, k, v = qkv(6, length=IMAGE + text)
    size = 6 // groups
    scale, bias = 0.7, 0.4
    outs = [
        alignedgen_sd3(q, k, v, IMAGE, groups=groups, lambda_=scale, log_bias=bias),
        stylealigned_sd3(q, k, v, IMAGE, groups=groups, score_scale=scale, score_shift=bias),
        mirrored_attention(q, k, v, IMAGE, source_row=0, groups=groups, lambda_=scale, log_bias=bias),
    ]
    plain = dense_attention(q, k, v)
    for row in range(6):
        ref = row - row % size
        expected = plain[row] if row == ref else by_hand(q, k, v, row, ref, ref, scale, bias)
        for out in outs:
            assert gap(out[row], expected) < 1e-12
    assert gap(outs[0], plain) > 0.1


@pytest.mark.parametrize("groups", [1, 2])
def test_mirrored_sharing(groups: int) -> None:
    """Keys and values of the source, statistics of the reference; both of these rows on their own."""
    q, k, v = qkv(4 * groups, seed=1)
    out = mirrored_attention(q, k, v, IMAGE, source_row=3, groups=groups, lambda_=1.1, log_bias=-0.3)
    plain = dense_attention(q, k, v)
    for start in range(0, 4 * groups, 4):
        for row in (start, start + 3):
            assert gap(out[row], plain[row]) < 1e-12
        for row in (start + 1, start + 2):
            assert gap(out[row], by_hand(q, k, v, row, start, start + 3, 1.1, -0.3)) < 1e-12
    ordinary = mirrored_attention(q, k, v, IMAGE, source_row=0, groups=groups, lambda_=1.1, log_bias=-0.3)
    assert gap(out[1:3], ordinary[1:3]) > 0.1
    k[3], v[3] = k[0], v[0]
    same = mirrored_attention(q[:4], k[:4], v[:4], IMAGE, source_row=3)
    assert gap(same[:3], alignedgen_sd3(q[:3], k[:3], v[:3], IMAGE)) < 1e-12


def test_mirrored_adain_switches() -> None:
    q, k, v = qkv(3, seed=2)
    for switches in ({"adain_q": False}, {"adain_k": False}, {"adain_v": True}):
        ours = mirrored_attention(q, k, v, IMAGE, source_row=0, lambda_=1.0, **switches)
        assert gap(ours, stylealigned_sd3(q, k, v, IMAGE, **switches)) < 1e-12
    off = mirrored_attention(q, k, v, IMAGE, source_row=2, log_bias=-math.inf, adain_q=False, adain_k=False)
    assert gap(off, dense_attention(q, k, v)) < 1e-12
