"""What a control does within attention during one transformer call: pure functions on tensors [B, S, H, D]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .branch import Branch, Branches
    from .layout import Layout, Site


@dataclass(frozen=True)
class Features:
    """q, k, v [B, S, H, D] of one site, after qk-norm and before position rotation, with its layout.

    `gate` broadcasts to [B, H]: how much of each head the control may touch there, 0 to 1; None means all of every
    head. `turned(x)` is x [B, S, H, D] rotated to its tokens' positions, as q and k will be.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: Layout
    gate: Tensor | None
    site: Site
    turned: Callable[[Tensor], Tensor] = lambda x: x


@dataclass(frozen=True)
class Attended:
    """One site after its attention: every token's own q, k, v [B, S, H, D], rotated; what is read, layout and gate.

    `branches` are what queries read, the row's own attention first; keys that count as read are in them, not in `k`.
    `out()` is the merged result [B, S, H, D], computed only if it is asked for; `attend(queries)` is what other queries
    would get, one for each token, or one for all of a row.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: Layout
    gate: Tensor | None
    site: Site
    out: Callable[[], Tensor]
    attend: Callable[[Tensor], Tensor]
    branches: Branches


class Effect:
    """What a control does at its sites during one transformer call; the base does nothing.

    Methods are pure: tensors in, tensors out. torch.compile traces them, so whatever changes from step to step is a
    0-dim tensor. Features of all controls come before branches of any.
    """

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """New q, k, v [B, S, H, D], before rotation."""
        return at.q, at.k, at.v

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """What queries read: `branches`, with more of them, fewer, or others; `own` is the row's own attention."""
        return branches

    def output(self, at: Attended) -> Tensor:
        """What the site passes on [B, S, H, D], before the output projection."""
        return at.out()
