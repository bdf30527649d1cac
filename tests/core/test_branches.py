"""Branches in every form against a dense float64 reference: query index, positions a row, biases, blends, own keys replaced."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attnctrl.attention import Backend, attend_branches, by_groups, by_log_sum_exp
from attnctrl.branch import Blend, Branch, Branches, Rows

B, S, H, D = 3, 11, 2, 8


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits_of(q: Tensor, branch: Branch) -> Tensor:
    """[B, H, S, Sk], -inf where a query does not read the branch; by loops."""
    keys = branch.key.shape[1]
    result = torch.full((B, H, S, keys), -torch.inf, dtype=torch.float64)
    rows = range(B) if branch.rows is None else branch.rows.index.tolist()
    for t, row in enumerate(rows):
        queries = torch.arange(S) if branch.queries is None else branch.queries
        mine = queries if queries.ndim == 1 else queries[t]
        for place, query in enumerate(mine.tolist()):
            for head in range(H):
                value = q[row, query, head] @ branch.key[t, :, head].T / math.sqrt(D)
                for added in (branch.log_bias, branch.mask):
                    if added is not None:
                        if added.dtype == torch.bool:
                            added = torch.where(added, 0.0, -torch.inf).double()
                        whole = added.expand(len(rows), H, len(mine), keys)
                        value = value + whole[t, head, place]
                result[row, head, query] = value
    return result


def dense(q: Tensor, branches: Branches) -> Tensor:
    """Softmax over everything that each query reads, blends mixed in as they come."""
    out, seen = torch.zeros_like(q), []
    for branch in branches:
        if isinstance(branch, Blend):
            out = torch.lerp(out, dense(q, branch.branches), branch.amount.double())
            continue
        values = torch.zeros(B, *branch.value.shape[1:], dtype=torch.float64)
        rows = range(B) if branch.rows is None else branch.rows.index.tolist()
        for t, row in enumerate(rows):
            values[row] = branch.value[t]
        seen.append((logits_of(q, branch), values))
        logits = torch.cat([one for one, _ in seen], dim=-1)
        value = torch.cat([one for _, one in seen], dim=1)
        p = torch.nan_to_num(torch.softmax(logits, dim=-1), 0.0)
        out = torch.einsum("bhqk,bkhd->bqhd", p, value)
    return out


Q, OWN = made(B, S, H, D), Branch(made(B, S, H, D, seed=1), made(B, S, H, D, seed=2))
SUBJECT, REST = torch.tensor([1, 4, 5]), torch.tensor([0, 2, 3, 6, 7, 8, 9, 10])


def branch(rows: tuple[int, ...] | None = None, keys: int = 6, seed: int = 3, **more: Tensor) -> Branch:
    count = B if rows is None else len(rows)
    chosen = None if rows is None else Rows.chosen(rows, B)
    return Branch(made(count, keys, H, D, seed=seed), made(count, keys, H, D, seed=seed + 1), chosen, **more)


def gathered(index: Tensor, queries: Tensor) -> Branch:
    return Branch(OWN.key[:, index], OWN.value[:, index], queries=queries, tokens=index)


LISTS: dict[str, Branches] = {
    "own": (OWN,),
    "rows": (OWN, branch((2, 0))),
    "queries": (OWN, branch(queries=SUBJECT)),
    "rows and queries": (OWN, branch((2, 0), queries=SUBJECT)),
    "an index a row": (OWN, branch((1, 2), queries=torch.tensor([[0, 3, 9], [8, 1, 2]]))),
    "own replaced by groups": (gathered(SUBJECT, SUBJECT), gathered(REST, REST)),
    "own replaced, soft": (
        gathered(SUBJECT, SUBJECT),
        gathered(REST, REST),
        Branch(OWN.key[:, REST], OWN.value[:, REST], queries=SUBJECT, log_bias=torch.tensor(-1.5)),
        Branch(OWN.key[:, SUBJECT], OWN.value[:, SUBJECT], queries=REST, log_bias=torch.tensor(-1.5)),
    ),
    "a query that reads nothing": (gathered(SUBJECT, SUBJECT),),
    "closed before anything is read": (
        branch((1,), log_bias=torch.tensor(-torch.inf)),
        branch((0, 2), seed=7),
    ),
    "own dropped": (branch((1,)), branch((0, 2), seed=7)),
    "a bias of each head": (OWN, branch((1,), log_bias=torch.tensor([0.5, -torch.inf]).reshape(H, 1, 1))),
    "a bias of each key": (OWN, branch((1, 2), log_bias=made(1, 1, 6, seed=9))),
    "a bias of each query": (OWN, branch((1, 2), log_bias=made(2, 1, S, 1, seed=9))),
    "a bias of query groups": (OWN, branch((1, 2), queries=SUBJECT, log_bias=made(3, 1, seed=9).reshape(3, 1))),
    "two": (OWN, branch((1, 2)), branch((2,), seed=8, log_bias=torch.tensor(0.7))),
    "a mask": (Branch(OWN.key, OWN.value, mask=made(1, 1, 1, S, seed=5) > -0.5), branch((1, 2))),
    "a mask of each row": (Branch(OWN.key, OWN.value, mask=made(B, 1, 1, S, seed=5)), branch((1, 2))),
    "a mask, and a bias": (
        Branch(OWN.key, OWN.value, mask=made(B, 1, S, S, seed=5) > -1),
        branch((1, 2), log_bias=torch.tensor(0.3)),
    ),
    "a blend": (OWN, Blend((gathered(SUBJECT, SUBJECT), gathered(REST, REST)), torch.tensor(0.3))),
    "a blend of each query": (OWN, branch((1,)), Blend((branch(seed=6),), made(1, S, 1, 1, seed=4).sigmoid())),
}


@pytest.mark.parametrize("name", LISTS)
def test_every_form_equals_dense(name):
    expected = dense(Q, LISTS[name])
    assert (attend_branches(Q, LISTS[name], Backend()) - expected).abs().max() < 1e-12
    if name != "own":
        assert (by_log_sum_exp(Q, LISTS[name])[0] - expected).abs().max() < 1e-12
    if name != "own" and all(isinstance(one, Branch) and one.joins for one in LISTS[name]) and LISTS[name][0] is OWN:
        assert (by_groups(Q, OWN, LISTS[name][1:], Backend()) - expected).abs().max() < 1e-12
    single = tuple(cast(one) for one in LISTS[name])
    assert (attend_branches(Q.float(), single, None).double() - expected).abs().max() < 2e-6
    assert not expected.isnan().any()


def cast(one: Branch | Blend) -> Branch | Blend:
    if isinstance(one, Blend):
        return Blend(tuple(cast(part) for part in one.branches), one.amount.float())
    more = {name: getattr(one, name) for name in ("rows", "queries")}
    added = {
        name: None if (x := getattr(one, name)) is None or x.dtype == torch.bool else x.float()
        for name in ("log_bias", "mask")
    }
    if one.mask is not None and one.mask.dtype == torch.bool:
        added["mask"] = one.mask
    return Branch(one.key.float(), one.value.float(), **more, **added)


def test_the_forms_differ():
    results = [dense(Q, one) for one in LISTS.values()]
    gaps = [(a - b).abs().max() for i, a in enumerate(results) for b in results[:i]]
    assert min(gaps) > 1e-3


def test_a_table_for_each_row_is_that_rows_own():
    from attnctrl.processors.positions import rotate

    x, angle = made(B, 5, H, D), made(B, 5, D // 2, seed=2).repeat_interleave(2, -1)
    whole = rotate(x, (angle.cos(), angle.sin()))
    for row in range(B):
        one = rotate(x[row : row + 1], (angle[row].cos(), angle[row].sin()))
        torch.testing.assert_close(whole[row : row + 1], one, atol=1e-6, rtol=1e-6)
    placed = Branch(x, x, rotary=(angle.cos(), angle.sin()), key_scale=torch.tensor(1.1)).turned(rotate)
    torch.testing.assert_close(placed.key, whole * 1.1)
    assert placed.rotary is None
