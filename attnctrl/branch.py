"""Branches: what queries read, as data. Rows of the batch, keys and values, where they stand, how loud, how merged.

B batch rows, S tokens, H heads, D head width, T rows that read a branch; everything is [B, S, H, D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .layout import Rotary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch.

    `index` [T], the others `rest` [B - T]; `order` [B] puts cat([rest, index]) back into batch order; int64. `numbers`
    are the rows again, as integers.
    """

    index: Tensor
    rest: Tensor
    order: Tensor
    numbers: tuple[int, ...]

    @classmethod
    def chosen(cls, rows: Sequence[int], batch: int, make: Callable[[Any], Tensor] | None = None) -> Rows:
        """Rows by number; `make` turns a list of integers into an index tensor on the device."""
        import torch

        make = make or torch.tensor
        rest = [row for row in range(batch) if row not in rows]
        place = {row: i for i, row in enumerate([*rest, *rows])}
        index, others, order = (make(list(x)).long() for x in (rows, rest, [place[row] for row in range(batch)]))
        return cls(index, others, order, tuple(rows))


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
    def biased(self) -> bool:
        """Whether its keys weigh more or less than others."""
        return self.log_bias is not None

    @property
    def joins(self) -> bool:
        """Whether its keys can stand beside the row's own in one call without a bias of every query and key."""
        return self.queries is None and (
            self.log_bias is None or self.log_bias.ndim < 2 or self.log_bias.shape[-2] == 1
        )

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

    branches: tuple[Branch | Blend, ...]
    amount: Tensor

    def turned(self, rotate: Callable[[Tensor, Rotary], Tensor]) -> Blend:
        """With all keys in their places."""
        return replace(self, branches=tuple(one.turned(rotate) for one in self.branches))


Branches = tuple[Branch | Blend, ...]
