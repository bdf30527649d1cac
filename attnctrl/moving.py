"""An object moved over a grid of tokens: which token of the source belongs in each place, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ControlError

Box = tuple[float, float, float, float]
"""Top, left, bottom, right in tokens."""


@dataclass(frozen=True)
class Moved:
    """Tokens by number, row by row: the `object` in the source, its `target`, what it leaves (`hole`), all others.

    `places` [S]: the source's token that belongs in each place; in the target the object's, resampled from its box, in
    the hole the nearest one of the background, elsewhere its own. `box`, `to`: the object's box and where it goes.
    """

    object: tuple[int, ...]
    target: tuple[int, ...]
    hole: tuple[int, ...]
    places: tuple[int, ...]
    box: Box
    to: Box

    @classmethod
    def over(
        cls,
        inside: Sequence[float],
        grid: tuple[int, int],
        by: tuple[float, float] | None = None,
        to: tuple[float, float, float, float] | None = None,
    ) -> Moved:
        """What lies mostly inside moved right and down by shares of the frame, or to a box (left, top, right, bottom).

        Raises ControlError for an object that fills the frame, that stays where it is, or that leaves the frame.
        """
        rows, columns = grid
        theirs = tuple(i for i, share in enumerate(inside) if share >= 0.5)
        if len(theirs) == rows * columns:
            raise ControlError("the object fills the whole frame and cannot be moved; give a smaller region")
        ys, xs = [i // columns for i in theirs], [i % columns for i in theirs]
        box = top, left, bottom, right = (min(ys), min(xs), max(ys) + 1, max(xs) + 1)
        if to is not None:
            goal: Box = (to[1] * rows, to[0] * columns, to[3] * rows, to[2] * columns)
        else:
            assert by is not None
            down, across = round(by[1] * rows), round(by[0] * columns)
            goal = (top + down, left + across, bottom + down, right + across)
        scale = (bottom - top) / (goal[2] - goal[0]), (right - left) / (goal[3] - goal[1])
        known = set(theirs)
        moved: dict[int, int] = {}
        for place in range(rows * columns):
            y = math.floor((place // columns + 0.5 - goal[0]) * scale[0] + top)
            x = math.floor((place % columns + 0.5 - goal[1]) * scale[1] + left)
            if top <= y < bottom and left <= x < right and y * columns + x in known:
                moved[place] = y * columns + x
        if not moved:
            raise ControlError("the object leaves the frame; move it less far")
        if all(place == source for place, source in moved.items()) and len(moved) == len(theirs):
            raise ControlError(f"the object moves by less than a token of the {rows} x {columns} grid; move it further")
        hole = tuple(sorted(known - set(moved)))
        ground = [i for i in range(rows * columns) if i not in known]

        def nearest(place: int) -> int:
            return min(
                ground, key=lambda i: ((i // columns - place // columns) ** 2 + (i % columns - place % columns) ** 2, i)
            )

        places = {**{i: nearest(i) for i in hole}, **moved}
        order = tuple(places.get(i, i) for i in range(rows * columns))
        return cls(theirs, tuple(sorted(moved)), hole, order, box, goal)

    def position(self, y: float, x: float) -> tuple[float, float]:
        """Where a token of the object stands after the move, in (fractions of) rows and columns."""
        (top, left, bottom, right), (up, start, down, end) = self.box, self.to
        return (
            (y - top + 0.5) * (down - up) / (bottom - top) + up - 0.5,
            (x - left + 0.5) * (end - start) / (right - left) + start - 0.5,
        )
