"""Sets within a batch: who reads whom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..control import Call, Placed, Reference
from ..layout import RowPlan


def plan_rows(call: Call, picture: Reference | None, share: str, copies: tuple[int, int] | None = None) -> RowPlan:
    """Who reads whom. A set is the j-th image of every prompt, within each half of the batch.

    Rows take after the set's first row, or the picture's own row, which stands before the prompts' rows, and read it
    too, or its copy that stands `copies` grids away. Reference rows read nobody unless `share` is "all".
    """
    reads: dict[int, list[int]] = {}
    leaders: list[int] = []
    for start, stop in call.groups:
        own = range(start + len(call.added), stop)
        for j in range(call.images_per_prompt):
            members = list(own[j :: call.images_per_prompt])
            first = members[0] if picture is None else start + call.row_of(picture)
            source = first if copies is None else start + call.row_of(Placed(j, copies, copy=True))
            everyone = [first, *(m for m in members if m != first)]
            for row in members:
                sources = [m for m in everyone if m != row] if share == "all" else [source][: row != first]
                if sources:
                    reads[row] = sources
                    leaders.append(first)
    stop = call.groups[-1][1]
    rest = [row for row in range(stop) if row not in reads]
    targets = list(reads)
    placed = rest + targets
    order = sorted(range(stop), key=placed.__getitem__)

    def index(rows: Sequence[object]) -> Tensor:
        return torch.tensor(rows, device=call.device, dtype=torch.int64)

    return RowPlan(index(targets), index(list(reads.values())), index(leaders), index(rest), index(order))
