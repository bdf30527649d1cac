"""Attention by branches: the stock call, one call with joined keys, and merging by log-sum-exp.

B batch rows, S tokens, H heads, D head width, T rows that read a branch; everything is [B, S, H, D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .layout import Rotary

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
class Rows:
    """Some rows of a batch.

    `index` [T], the others `rest` [B - T]; `order` [B] puts cat([rest, index]) back into batch order; int64.
    """

    index: Tensor
    rest: Tensor
    order: Tensor

    @classmethod
    def chosen(cls, rows: Sequence[int], batch: int, make: Callable[[Any], Tensor] = torch.tensor) -> Rows:
        """Rows by number; `make` turns a list of integers into an index tensor on the device."""
        rest = [row for row in range(batch) if row not in rows]
        place = {row: i for i, row in enumerate([*rest, *rows])}
        return cls(*(make(list(x)).long() for x in (rows, rest, [place[row] for row in range(batch)])))


@dataclass(frozen=True)
class Branch:
    """Keys and values that some queries of some rows read: the only unit of attention.

    `key`, `value` [T, Sk, H, D]; `rows` read them (None: every row), with the queries at `queries`: [Q], or [T, Q] one
    index a row (None: every query). `rotary`: where the keys stand, a table of their own or one a row, None for keys
    that are not rotated. `key_scale` [] multiplies the rotated keys. `log_bias` is added to the logits: a scalar, or
    anything that broadcasts to [T, H, Q, Sk] along queries or along keys, not both; -inf closes. `mask` is the
    caller's own, as
    scaled_dot_product_attention takes it, for branches of every row and query. `tokens` [Sk]: keys gathered from the
    row's own sequence stand there in it; only who observes reads this. A row's own attention is the first branch.
    """

    key: Tensor
    value: Tensor
    rows: Rows | None = None
    queries: Tensor | None = None
    rotary: Rotary = None
    key_scale: Tensor | None = None
    log_bias: Tensor | None = None
    mask: Tensor | None = None
    tokens: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether every query of every row reads it."""
        return self.rows is None and self.queries is None

    @property
    def by_query(self) -> bool:
        """Whether the bias differs among queries, so that it weighs the branch's result rather than its keys."""
        return self.log_bias is None or self.log_bias.ndim == 0 or self.log_bias.shape[-1] == 1

    def turned(self, rotate: Callable[[Tensor, Rotary], Tensor]) -> Branch:
        """With its keys rotated to their places and scaled."""
        key = rotate(self.key, self.rotary)
        if self.key_scale is not None:
            key = key * self.key_scale.to(key.dtype)
        return replace(self, key=key, rotary=None, key_scale=None)


@dataclass(frozen=True)
class Blend:
    """Branches merged among themselves, then mixed by a fixed amount with what was merged before: lerp(o, o_b, amount).

    `amount`: a scalar, or what broadcasts to [B, S, H, D]. For a base beside regions, a foreground beside a background.
    """

    branches: tuple[Branch, ...]
    amount: Tensor

    def turned(self, rotate: Callable[[Tensor, Rotary], Tensor]) -> Blend:
        """With all keys in their places."""
        return replace(self, branches=tuple(one.turned(rotate) for one in self.branches))


Branches = tuple[Branch | Blend, ...]


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Backend | None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention through diffusers' dispatcher, or torch's own without a backend; `bias` fits [B, H, Sq, Sk]."""
    if backend is None:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    return dispatch_attention_fn(q, k, v, attn_mask=bias, backend=backend.name, parallel_config=backend.parallel)


def attend_branches(q: Tensor, branches: Branches, backend: Backend | None) -> Tensor:
    """Attention to everything that each query reads -> [B, S, H, D]; zeros for a query that reads nothing.

    A single complete branch is the stock call, bit for bit. One more without a bias is one call over joined keys,
    which every kernel of diffusers can serve; with a bias too where a kernel was chosen by name, which then has to take
    a mask. All else is merged by log-sum-exp: as fast (benchmarks/branches.py), and no kernel has to take a mask.
    """
    first = branches[0]
    if isinstance(first, Branch) and first.complete and first.log_bias is None:
        if len(branches) == 1:
            return attend(q, first.key, first.value, backend, first.mask)
        if len(branches) == 2 and (second := branches[1]) and isinstance(second, Branch) and second.queries is None:
            unfused = q.device.type not in FUSED or (backend is not None and backend.name is not None)
            if second.rows is not None and (second.log_bias is None or unfused):
                return by_joined_keys(q, first, second, backend)
    return by_log_sum_exp(q, branches)[0]


def by_joined_keys(q: Tensor, own: Branch, branch: Branch, backend: Backend | None) -> Tensor:
    """One call over [own; branch] keys for the branch's rows, the stock call for the rest.

    Without a bias no mask is made, so that every kernel of diffusers serves. A bias is per key
    ([1, H or 1, 1, Sk]), not per query, unless the caller's own mask is.
    """
    rows = branch.rows
    assert rows is not None
    shared = attend(
        q[rows.index],
        torch.cat([own.key[rows.index], branch.key], dim=1),
        torch.cat([own.value[rows.index], branch.value], dim=1),
        backend,
        _joined_bias(own, branch, q),
    )
    if rows.rest.numel() == 0:
        return shared[rows.order]
    mask = own.mask if own.mask is None or own.mask.shape[0] == 1 else own.mask[rows.rest]
    alone = attend(q[rows.rest], own.key[rows.rest], own.value[rows.rest], backend, mask)
    return torch.cat([alone, shared])[rows.order]


def by_log_sum_exp(q: Tensor, branches: Branches) -> tuple[Tensor, Tensor]:
    """Each branch merged in, o = lerp(o, o_b, sigmoid(lse_b + b - lse)) -> o [B, S, H, D] and its log-sum-exp [B, H,
    S].

    Exact for any bias; the weight is the attention mass that falls on the branch.
    """
    first = branches[0]
    whole = isinstance(first, Branch) and first.complete
    out, lse = q.new_zeros(q.shape), None
    if whole:
        assert isinstance(first, Branch)
        out, lse = _read(q, first)
        branches = branches[1:]
    for branch in branches:
        if isinstance(branch, Blend):
            other, _ = by_log_sum_exp(q, branch.branches)
            out = torch.lerp(out, other, branch.amount.to(out.dtype))
            continue
        out, lse = _merged(q, out, _nothing(q) if lse is None else lse, branch, whole)
    return out, _nothing(q) if lse is None else lse


def _merged(q: Tensor, out: Tensor, lse: Tensor, branch: Branch, whole: bool) -> tuple[Tensor, Tensor]:
    """`out` and `lse` with a branch merged in at its rows and queries; `whole`: no query was without keys before."""
    at = _place(branch, q)
    extra, extra_lse = _read(q if at is None else q[at], branch)
    before, own_lse = (out, lse) if at is None else (out[at], _turned(lse)[at])
    own_lse = own_lse if at is None else _turned(own_lse)
    weight = torch.sigmoid(extra_lse - own_lse)
    if not whole:  # -inf beside -inf
        weight = torch.where(extra_lse == -torch.inf, 0.0, weight)
    weight = weight.transpose(1, 2).unsqueeze(-1)
    merged = torch.lerp(before.to(lse.dtype), extra.to(lse.dtype), weight).to(out.dtype)
    total = torch.logaddexp(own_lse, extra_lse)
    if at is None:
        return merged, total
    if branch.queries is None:
        return out.index_copy(0, at, merged), lse.index_copy(0, at, total)
    return out.index_put(at, merged), _turned(_turned(lse).index_put(at, _turned(total)))


def _nothing(q: Tensor) -> Tensor:
    """The log-sum-exp [B, H, S] of queries that have read nothing."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=wide, device=q.device)


def _place(branch: Branch, q: Tensor) -> Any:
    """The index of a branch's queries in [B, S]; None for all."""
    rows = None if branch.rows is None else branch.rows.index
    if branch.queries is None:
        return rows
    if rows is None:
        rows = torch.arange(q.shape[0], device=q.device)
    return rows[:, None], branch.queries


def _turned(lse: Tensor) -> Tensor:
    """[B, H, S] as [B, S, H], and back."""
    return lse.transpose(1, 2)


def _read(q: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:
    """What queries [T, Q, H, D] get from a branch, and its log-sum-exp [T, H, Q] with the bias."""
    bias = branch.log_bias
    if bias is not None and not branch.by_query:
        shape = (*[1] * (4 - bias.ndim), *bias.shape)
        return attend_with_lse(q, branch.key, branch.value, bias.reshape(shape))
    out, lse = attend_with_lse(q, branch.key, branch.value, branch.mask)
    if bias is not None:
        lse = lse + (bias if bias.ndim == 0 else bias.squeeze(-1)).to(lse.dtype)
    return out, lse


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its logits -> ([B, Sq, H, D], [B, H, Sq]).

    CPU and CUDA use their fused kernels; elsewhere, and for a mask on CUDA, queries go in chunks of 512, so that no
    Sq x Sk tensor is made. `mask` is boolean (True: read) or added to the logits, and fits [B, H, Sq, Sk].
    """
    q_, k_, v_ = (x.transpose(1, 2) for x in (q, k, v))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    if q.device.type == "cpu":
        added = {} if mask is None else {"attn_mask": mask.to(q.dtype).expand(q.shape[0], *mask.shape[1:])}
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_, k_, v_, **added)
    elif q.device.type == "cuda" and mask is None:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q_, k_, v_, None, True)
        lse = lse[..., : q.shape[1]]
    else:
        out, lse = _chunked(q_, k_, v_, mask)
    return out.transpose(1, 2), lse


def _chunked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    outs, lses = [], []
    for i, part in enumerate(q.split(QUERY_CHUNK, dim=2)):
        logits = (part @ k.transpose(-1, -2)).float() * part.shape[-1] ** -0.5
        if mask is not None:
            logits = logits + (mask if mask.shape[-2] == 1 else mask.split(QUERY_CHUNK, dim=-2)[i])
        lse = logits.logsumexp(-1)
        outs.append((logits - lse.unsqueeze(-1)).exp().to(v.dtype) @ v)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _joined_bias(own: Branch, branch: Branch, q: Tensor) -> Tensor | None:
    """What is added to the logits of [own; branch] keys for the branch's rows; None where nothing is."""
    bias, mask = branch.log_bias, own.mask
    if bias is None and mask is None:
        return None
    assert branch.rows is not None
    count, length = own.key.shape[1], branch.key.shape[1]
    if bias is None:
        bias = q.new_zeros(())
    bias = bias.to(q.dtype).reshape((*[1] * (4 - bias.ndim), *bias.shape)).expand(-1, -1, -1, length)
    if mask is None:
        return torch.cat([bias.new_zeros(*bias.shape[:-1], count), bias], dim=-1)
    mask = mask if mask.shape[0] == 1 else mask[branch.rows.index]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    shape = torch.broadcast_shapes(mask.shape[:-1], bias.shape[:-1])
    return torch.cat([mask.to(q.dtype).expand(*shape, count), bias.expand(*shape, length)], dim=-1)
