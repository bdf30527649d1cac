"""The attention primitives: two ways to merge branches, against each other and a dense float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from references.attention import adain as naive_adain
from references.attention import dense_attention
from torch.utils._python_dispatch import TorchDispatchMode

from attnctrl.attention import (
    Backend,
    _chunked,
    attend_branches,
    attend_with_lse,
    by_joined_keys,
    by_log_sum_exp,
)
from attnctrl.branch import Branch, Rows
from attnctrl.statistics import adain

B, S, H, D, EXTRA = 4, 37, 3, 16, 23


def index(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def tensors(dtype: torch.dtype, sizes: tuple[int, ...] = (S, S, S), rows: int = B) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(rows, size, H, D, generator=g, dtype=torch.float64).to(dtype) for size in sizes]


BIASES = {
    "none": None,
    "+20": torch.tensor(20.0),
    "log 2": torch.tensor(math.log(2)),
    "-30": torch.tensor(-30.0),
    "closed": torch.tensor(-torch.inf),
    "per head": torch.tensor([0.5, -torch.inf, -2.0]).reshape(H, 1, 1),
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
@pytest.mark.parametrize("targets", [(1, 2, 3), (3, 0), (0, 1, 2, 3), (2,)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 2e-2)]
)
def test_joined_keys_and_log_sum_exp_equal_dense(bias, targets, dtype, tolerance):
    q, k, v = tensors(dtype)
    key, value = tensors(dtype, (EXTRA, EXTRA), len(targets))
    own, branch = Branch(k, v), Branch(key, value, Rows.chosen(targets, B), log_bias=bias)
    expected = dense_attention(*(x.double() for x in (q, k, v)))
    full = torch.zeros(H) if bias is None else bias.double().flatten().expand(H)
    dense_bias = torch.cat([torch.zeros(H, S), full[:, None].expand(H, EXTRA)], 1)[None, :, None]
    for i, row in enumerate(targets):
        joined = [torch.cat([x[row], y[i]])[None].double() for x, y in ((k, key), (v, value))]
        expected[row] = dense_attention(q[row][None].double(), *joined, dense_bias)[0]
    one_call = by_joined_keys(q, own, branch, Backend())
    merged, _ = by_log_sum_exp(q, (own, branch))
    for result in (one_call, merged):
        assert result.dtype == dtype
        assert (result.double() - expected).abs().max() < tolerance


def test_no_branch_is_the_stock_call_bit_for_bit():
    q, k, v = tensors(torch.float32)
    stock = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    assert torch.equal(attend_branches(q, (Branch(k, v),), Backend()), stock.transpose(1, 2))


def test_log_sum_exp_of_every_kernel():
    q, k, v = tensors(torch.float64)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
    out, lse = attend_with_lse(q, k, v)
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(out, dense_attention(q, k, v))
    chunked, chunked_lse = _chunked(*(x.transpose(1, 2).float() for x in (q, k, v)))
    torch.testing.assert_close(chunked.transpose(1, 2).double(), out, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(chunked_lse.double(), lse, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_adain_equals_naive_and_keeps_dtype(dtype):
    x, ref = tensors(dtype, (S, 29))
    ref = ref * 3 + 1
    result = adain(x, ref)
    expected = naive_adain(x.double(), ref.double())
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() < {8: 1e-12, 4: 1e-5, 2: 0.1}[dtype.itemsize]
    assert torch.equal(adain(x, ref, torch.tensor(0.0)), x)


class Shapes(TorchDispatchMode):
    """Records the shapes of every tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.seen.add(tuple(x.shape))
        return out


@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize("share", ["reference", "all"])
@pytest.mark.parametrize("controls", [1, 2])
def test_nothing_of_attention_size_is_made(strength, share, controls, pipe, latents_of):
    from attnctrl import AlignedStyle, attached

    control = AlignedStyle(strength=strength, share=share, adain_queries=controls == 1, adain_keys=controls == 1)
    text, image = 12, 15 * 20
    with attached(pipe, [control] * controls), Shapes() as shapes:
        latents_of(pipe, n=3, steps=1, height=120, width=160)
    sizes = {text + image, image, *(text + image + n * image for n in (1, 2))}
    attention_sized = [s for s in shapes.seen if len(s) >= 2 and s[-1] in sizes and s[-2] in sizes]
    assert not attention_sized
    assert any(text + image in s for s in shapes.seen), "the watch saw nothing"
