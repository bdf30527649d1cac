"""The walk through the phases of one controlled attention call, the same for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from .attention import Backend, attend_branches
from .board import CallState, Gates
from .branch import Blend, Branch, Branches
from .effect import Attended, Features
from .layout import Rotary, Site


def controlled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: CallState,
    gates: Gates,
    site: Site,
    rotary: Rotary,
    rotate: Callable[[Tensor, Rotary], Tensor],
    backend: Backend | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Features, branches, merge, output -> [B, S, H, D]; with no effect at this step, the stock attention bit for bit.

    q, k, v [B, S, H, D] after qk-norm and before rotation by `rotary`; `mask` is the caller's, of the stock attention.
    """
    layout = state.seen[site.stream]
    planned = [(state.effects[place], gate) for place, gate in gates]
    acting = [(effect, gate) for effect, gate in planned if effect is not None]
    for effect, gate in acting:
        q, k, v = effect.features(Features(q, k, v, layout, gate, site))
    if mask is not None:
        mask = mask.reshape((*[1] * (4 - mask.ndim), *mask.shape))
    own = Branch(k, v, rotary=rotary, mask=mask)
    branches: Branches = (own,)

    def turn(x: Tensor) -> Tensor:
        return rotate(x, rotary)

    for effect, gate in acting:
        branches = effect.branches(Features(q, k, v, layout, gate, site, turn), own, branches)
    q, turned = rotate(q, rotary), own.turned(rotate)
    branches = tuple(_turned(one, own, turned, rotate) for one in branches)

    def attend(queries: Tensor) -> Tensor:
        if queries.shape[1] < q.shape[1] and not all(_any_query(one) for one in branches):
            queries = queries.expand_as(q)
        return attend_branches(queries, branches, backend)

    out = partial(attend, q)
    at = Attended(q, turned.key, v, layout, None, site, out, attend, branches)
    for effect, gate in acting:
        out = partial(effect.output, replace(at, gate=gate, out=out))
    return out()


def _turned(
    one: Branch | Blend, own: Branch, turned: Branch, rotate: Callable[[Tensor, Rotary], Tensor]
) -> Branch | Blend:
    """A branch with its keys in their places; the row's own keys, if it still has them, are rotated once."""
    if isinstance(one, Branch) and one.key is own.key and one.rotary is own.rotary and one.key_scale is None:
        return replace(one, key=turned.key, rotary=None)
    return one.turned(rotate)


def _any_query(branch: Branch | Blend) -> bool:
    """Whether a branch serves every query alike, so that it can be asked for any number of them."""
    if isinstance(branch, Blend) or branch.queries is not None or branch.mask is not None:
        return False
    return branch.log_bias is None or branch.log_bias.ndim < 2 or branch.log_bias.shape[-2] == 1
