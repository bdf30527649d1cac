"""The walk through the phases of one controlled attention call, the same for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from .attention import Backend, attend_branches
from .control import Attended, Features, Rotary
from .layout import Site

Gates = tuple[tuple[int, Tensor | None], ...]
"""The controls that act at a site, by position, each with its gate over heads."""


def controlled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: Any,
    gates: Gates,
    site: Site,
    rotary: Rotary,
    rotate: Callable[[Tensor, Rotary], Tensor],
    backend: Backend | None,
) -> Tensor:
    """Features, branches, merge, output -> [B, S, H, D]; with no effect at this step, the stock attention bit for bit.

    q, k, v [B, S, H, D] after qk-norm and before rotation by `rotary`.
    """
    extras = []
    for position, gate in gates:
        effect = state.effects[position]
        if effect is not None:
            at = Features(q, k, v, state.layout, gate)
            q, k, v = effect.features(at)
            extras += effect.branches(replace(at, q=q, k=k, v=v))
    branches = [extra.branch(rotate(extra.key, extra.rotary)) for extra in extras]
    q, k = rotate(q, rotary), rotate(k, rotary)

    def attend(queries: Tensor) -> Tensor:
        return attend_branches(queries, k, v, branches, backend)

    out = partial(attend, q)
    for position, gate in gates:
        effect = state.effects[position]
        if effect is not None:
            out = partial(effect.output, Attended(q, k, v, state.layout, gate, out, attend, branches, site))
    return out()
