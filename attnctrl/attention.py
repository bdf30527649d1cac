"""Attention over several sets of keys: the stock call, one call with joined keys, and log-sum-exp merging.

B batch rows, S tokens, H heads, D head width; everything is [B, S, H, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .layout import RowPlan

QUERY_CHUNK = 512
FUSED = ("cpu", "cuda")
"""Devices whose fused kernels give the log-sum-exp."""


@dataclass(frozen=True)
class Backend:
    """diffusers' choice of attention kernel for a site (`set_attention_backend`), None for its default.

    SD3's stock processors do not ask the dispatcher: there no backend is given, and torch's own kernel is called.
    """

    name: Any = None
    parallel: Any = None


@dataclass(frozen=True)
class Branch:
    """Keys and values that the target rows of `rows` read beside their own.

    `key`, `value` [T, Sk, H, D] (T targets; keys already rotated); `log_bias` is added to the logits of all these keys:
    a scalar or [H], -inf closes the branch for a head, None is 0.
    """

    rows: RowPlan
    key: Tensor
    value: Tensor
    log_bias: Tensor | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Backend | None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention through diffusers' dispatcher, or torch's own without a backend; `bias` fits [B, H, Sq, Sk]."""
    if backend is None:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    return dispatch_attention_fn(q, k, v, attn_mask=bias, backend=backend.name, parallel_config=backend.parallel)


def attend_branches(q: Tensor, k: Tensor, v: Tensor, branches: list[Branch], backend: Backend | None) -> Tensor:
    """Attention of every row to its own keys and to the branches that it reads -> [B, S, H, D].

    Without branches this is the stock call, bit for bit. One branch without a bias is one call over joined keys, which
    every kernel of diffusers can serve. A bias, or more branches, are merged by log-sum-exp: as fast
    (benchmarks/branches.py), and no kernel has to take a mask.
    """
    if not branches:
        return attend(q, k, v, backend)
    if len(branches) == 1 and (branches[0].log_bias is None or q.device.type not in FUSED):
        return by_joined_keys(q, k, v, branches[0], backend)
    return by_log_sum_exp(q, k, v, branches)


def by_joined_keys(q: Tensor, k: Tensor, v: Tensor, branch: Branch, backend: Backend | None) -> Tensor:
    """One call over [own; branch] keys for the target rows, the stock call for the rest.

    Without a bias no mask is made, so that every kernel of diffusers serves. With one it is per key
    ([1, H or 1, 1, Sk]), never per query.
    """
    rows = branch.rows
    bias = None if branch.log_bias is None else _key_bias(branch.log_bias, k, branch.key)
    shared = attend(
        q[rows.targets],
        torch.cat([k[rows.targets], branch.key], dim=1),
        torch.cat([v[rows.targets], branch.value], dim=1),
        backend,
        bias,
    )
    if rows.rest.numel() == 0:
        return shared[rows.order]
    own = attend(q[rows.rest], k[rows.rest], v[rows.rest], backend)
    return torch.cat([own, shared])[rows.order]


def by_log_sum_exp(q: Tensor, k: Tensor, v: Tensor, branches: list[Branch]) -> Tensor:
    """Own attention of all rows, then each branch merged in: o = lerp(o, o_b, sigmoid(lse_b + b - lse)).

    Exact for any bias; the weight is the attention mass that falls on the branch.
    """
    out, lse = attend_with_lse(q, k, v)
    for branch in branches:
        targets = branch.rows.targets
        extra, extra_lse = attend_with_lse(q[targets], branch.key, branch.value)
        if branch.log_bias is not None:
            extra_lse = extra_lse + branch.log_bias.to(lse.dtype).reshape(-1, 1)
        own_lse = lse[targets]
        weight = torch.sigmoid(extra_lse - own_lse).transpose(1, 2).unsqueeze(-1)
        merged = torch.lerp(out[targets].to(lse.dtype), extra.to(lse.dtype), weight).to(out.dtype)
        out = out.index_copy(0, targets, merged)
        lse = lse.index_copy(0, targets, torch.logaddexp(own_lse, extra_lse))
    return out


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its logits -> ([B, Sq, H, D], [B, H, Sq]).

    CPU and CUDA use their fused kernels; elsewhere queries go in chunks of 512, so that no Sq x Sk tensor
    is made.
    """
    q_, k_, v_ = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_, k_, v_)
    elif q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q_, k_, v_, None, True)
        lse = lse[..., : q.shape[1]]
    else:
        out, lse = _chunked(q_, k_, v_)
    return out.transpose(1, 2), lse


def _chunked(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    outs, lses = [], []
    for part in q.split(QUERY_CHUNK, dim=2):
        logits = (part @ k.transpose(-1, -2)).float() * part.shape[-1] ** -0.5
        lse = logits.logsumexp(-1)
        outs.append((logits - lse.unsqueeze(-1)).exp().to(v.dtype) @ v)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _key_bias(log_bias: Tensor, own: Tensor, extra: Tensor) -> Tensor:
    bias = log_bias.to(own.dtype).reshape(1, -1, 1, 1).expand(1, -1, 1, extra.shape[1])
    zeros = bias.new_zeros(1, bias.shape[1], 1, own.shape[1])
    return torch.cat([zeros, bias], dim=-1)
