"""Sets within a batch: who reads whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..branch import Rows
from ..control import Call
from ..guests import CopyGuest, Guest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SetPlan:
    """Row `rows.index[i]` reads rows `sources[i]` and takes after row `leaders[i]`; sources [T, R], leaders [T],
    int64."""

    rows: Rows
    sources: Tensor
    leaders: Tensor


def plan_sets(call: Call, picture: Guest | None, share: str, copies: tuple[float, ...] | None = None) -> SetPlan:
    """Who reads whom. A set is the j-th image of every prompt, within each half of the batch.

    Rows take after the set's first row, or the picture's own row, which stands before the prompts' rows, and read it
    too, or its copy that stands `copies` grids away. Reference rows read nobody unless `share` is "all".
    """
    reads: dict[int, list[int]] = {}
    leaders: list[int] = []
    for start, stop in call.groups:
        own = range(start + len(call.guests), stop)
        for j in range(call.images_per_prompt):
            members = list(own[j :: call.images_per_prompt])
            first = members[0] if picture is None else start + call.row_of(picture)
            source = first if copies is None else start + call.row_of(CopyGuest(j, copies))
            everyone = [first, *(m for m in members if m != first)]
            for row in members:
                sources = [m for m in everyone if m != row] if share == "all" else [source][: row != first]
                if sources:
                    reads[row] = sources
                    leaders.append(first)
    return SetPlan(call.rows(list(reads)), call.index(list(reads.values())), call.index(leaders))
