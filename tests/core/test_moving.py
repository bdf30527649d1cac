"""Where the tokens of a moved object belong."""

from __future__ import annotations

import pytest

from attnctrl import ControlError
from attnctrl.moving import Moved

GRID = (3, 4)
OBJECT = [1.0, 1.0, 0, 0, 1.0, 0.4, 0, 0, 0, 0, 0, 0]  # tokens 0 1 4 of a 3 x 4 grid


def test_moved_by_an_offset():
    moved = Moved.over(OBJECT, GRID, by=(0.25, 0.34))
    assert moved.object == (0, 1, 4)
    assert moved.target == (5, 6, 9)
    assert moved.hole == (0, 1, 4)
    # the hole takes the nearest background, the target the object
    assert moved.places == (5, 2, 2, 3, 5, 0, 1, 7, 8, 4, 10, 11)
    assert moved.position(0, 1) == (1, 2)


def test_what_overlaps_leaves_a_smaller_hole_and_what_leaves_the_frame_is_cut():
    moved = Moved.over(OBJECT, GRID, by=(-0.25, 0))
    assert moved.target == (0,)
    assert moved.hole == (1, 4)
    assert moved.places[0] == 1


def test_into_a_box_of_another_size():
    moved = Moved.over([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], GRID, to=(0.5, 0, 1, 2 / 3))
    assert moved.target == (2, 3, 6, 7)
    assert {moved.places[i] for i in moved.target} == {0}
    assert moved.position(0, 0) == (0.5, 2.5)


@pytest.mark.parametrize(
    ("inside", "by", "said"),
    [
        ([1.0] * 12, (0.5, 0), "fills the whole frame"),
        (OBJECT, (0.1, 0), "less than a token"),
        (OBJECT, (-1.0, 0), "leaves the frame"),
    ],
)
def test_what_cannot_be_moved_is_refused(inside, by, said):
    with pytest.raises(ControlError, match=said):
        Moved.over(inside, GRID, by=by)
