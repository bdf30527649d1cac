"""Attention by branches: the stock call, one call with joined keys, and merging by log-sum-exp.

B batch rows, S tokens, H heads, D head width, T rows that read a branch; everything is [B, S, H, D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .branch import Blend, Branch, Branches

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

    @property
    def chosen(self) -> bool:
        """Whether the user chose a kernel, for the model or by diffusers' `attention_backend` context."""
        return self.name is not None or _AttentionBackendRegistry.get_active_backend()[0] != AttentionBackendName.NATIVE


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Backend | None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention through diffusers' dispatcher, or torch's own without a backend; `bias` fits [B, H, Sq, Sk]."""
    if backend is None:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    return dispatch_attention_fn(q, k, v, attn_mask=bias, backend=backend.name, parallel_config=backend.parallel)


def attend_branches(q: Tensor, branches: Branches, backend: Backend | None) -> Tensor:
    """Attention to everything that each query reads -> [B, S, H, D]; zeros for a query that reads nothing.

    A single complete branch is the stock call, bit for bit; with a bias by key one call too. One more without a bias is
    one call over joined keys, which every kernel of diffusers can serve; with a bias too where a kernel was chosen by
    name, which then has to take a mask. All else is merged by log-sum-exp: as fast (benchmarks/branches.py), and no
    kernel has to take a mask.
    """
    first = branches[0]
    if len(branches) == 1 and isinstance(first, Branch) and first.complete and (first.joins and not first.by_query):
        return attend(q, first.key, first.value, backend, _bias_over([first], q))
    if isinstance(first, Branch) and first.complete and first.log_bias is None:
        if len(branches) == 1:
            return attend(q, first.key, first.value, backend, first.mask)
        others = [one for one in branches[1:] if isinstance(one, Branch) and one.joins]
        if len(others) == len(branches) - 1:
            chosen = backend is not None and backend.chosen
            if len(others) == 1 and others[0].rows and (not others[0].biased or chosen or q.device.type not in FUSED):
                return by_joined_keys(q, first, others[0], backend)
            if chosen:
                return by_groups(q, first, others, backend)
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
        _bias_over([_masked(own, rows.index), branch], q),
    )
    if rows.rest.numel() == 0:
        return shared[rows.order]
    alone = attend(q[rows.rest], own.key[rows.rest], own.value[rows.rest], backend, _masked(own, rows.rest).mask)
    return torch.cat([alone, shared])[rows.order]


def by_groups(q: Tensor, own: Branch, others: Sequence[Branch], backend: Backend | None) -> Tensor:
    """One call over joined keys for every group of rows that read the same branches."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in range(q.shape[0]):
        reads = tuple(i for i, one in enumerate(others) if one.rows is None or row in one.rows.numbers)
        groups.setdefault(reads, []).append(row)
    order = [row for members in groups.values() for row in members]
    parts = []
    for reads, members in groups.items():
        rows = torch.tensor(members, device=q.device)
        taken = [_of_rows(own, rows), *(_of_rows(others[i], _places(others[i], members, q)) for i in reads)]
        key, value = (torch.cat([getattr(one, name) for one in taken], dim=1) for name in ("key", "value"))
        parts.append(attend(q[rows], key, value, backend, _bias_over(taken, q)))
    return torch.cat(parts)[torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=q.device)]


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
        return attend_with_lse(q, branch.key, branch.value, _bias_over([branch], q))
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


def of_row(branches: Branches, row: int, values: Callable[[Branch], Tensor | None]) -> Branches:
    """What one row reads, as a batch of that row, with other values [1, Sk, H, D] of each branch, None for zeros."""
    found: list[Branch | Blend] = []
    for one in branches:
        if isinstance(one, Blend):
            amount = one.amount[row : row + 1] if one.amount.ndim == 4 and one.amount.shape[0] > 1 else one.amount
            found.append(Blend(tuple(of_row(one.branches, row, values)), amount))
            continue
        place = row
        if one.rows is not None:
            if row not in one.rows.numbers:
                continue
            place = one.rows.numbers.index(row)
        bias, mask = (
            x[place : place + 1] if x is not None and x.ndim == 4 and x.shape[0] > 1 else x
            for x in (one.log_bias, one.mask)
        )
        queries = one.queries[place] if one.queries is not None and one.queries.ndim == 2 else one.queries
        key, given = one.key[place : place + 1], values(one)
        value = torch.zeros_like(one.value[place : place + 1]) if given is None else given
        found.append(Branch(key, value, None, queries, None, None, bias, mask, one.tokens))
    return tuple(found)


def _masked(own: Branch, rows: Tensor) -> Branch:
    """A row's own attention with the caller's mask of some rows."""
    mask = own.mask
    return own if mask is None or mask.shape[0] == 1 else replace(own, mask=mask[rows])


def _places(branch: Branch, members: Sequence[int], like: Tensor) -> Tensor:
    """Where rows stand among those that read a branch."""
    numbers = range(like.shape[0]) if branch.rows is None else branch.rows.numbers
    return torch.tensor([list(numbers).index(row) for row in members], device=like.device)


def _of_rows(branch: Branch, rows: Tensor) -> Branch:
    """A branch's keys, values, bias and mask for some of its rows, as [n, ...]."""
    bias, mask = (
        None if x is None else x[rows] if x.ndim == 4 and x.shape[0] > 1 else x for x in (branch.log_bias, branch.mask)
    )
    return replace(branch, key=branch.key[rows], value=branch.value[rows], rows=None, log_bias=bias, mask=mask)


def _bias_over(branches: Sequence[Branch], q: Tensor) -> Tensor | None:
    """What is added to the logits of all their keys [n or 1, H or 1, Sq or 1, keys]; None where nothing is."""
    if all(one.log_bias is None and one.mask is None for one in branches):
        return None
    pieces = []
    for one in branches:
        piece = q.new_zeros(1, 1, 1, 1)
        for given in (one.log_bias, one.mask):
            if given is not None:
                if given.dtype == torch.bool:
                    given = torch.zeros_like(given, dtype=q.dtype).masked_fill(~given, -torch.inf)
                piece = piece + given.to(q.dtype).reshape((*[1] * (4 - given.ndim), *given.shape))
        pieces.append(piece)
    shape = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
    return torch.cat(
        [piece.expand(*shape, one.key.shape[1]) for piece, one in zip(pieces, branches, strict=True)], dim=-1
    )
