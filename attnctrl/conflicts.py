"""Controls that overwrite the same thing at the same place and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .control import Control
from .errors import ConflictError
from .layout import Site


def refuse_conflicts(
    controls: Sequence[Control],
    selected: Sequence[dict[int, Any]],
    sites: Sequence[Site],
    meet: Callable[[Control, Control], bool] = lambda a, b: a.where.may_meet(b.where),
) -> None:
    """Raise ConflictError where two controls claim the same thing at a site, at steps that meet."""
    for j, second in enumerate(controls):
        for i, first in enumerate(controls[:j]):
            both = first.claimed & second.claimed if not (first.off or second.off) else frozenset()
            blocks = sorted(selected[i].keys() & selected[j].keys())
            if both and blocks and meet(first, second):
                raise ConflictError(
                    f"{first.kind} and {second.kind} both set {' and '.join(sorted(both))} in {len(blocks)} blocks "
                    f"({sites[blocks[0]].label} ..): give them different blocks or steps, or switch it off in one"
                )
