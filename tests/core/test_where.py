"""The notation of blocks, heads and steps."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from attnctrl import ControlError, Where
from attnctrl.layout import Site, Step

SITES = tuple(
    [Site(i, "double", i, 4, nn.Identity()) for i in range(3)]
    + [Site(3 + i, "single", i, 4, nn.Identity()) for i in range(5)]
)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("single", [3, 4, 5, 6, 7]),
        ("double", [0, 1, 2]),
        ("2", [2]),
        ("L2-L4", [2, 3, 4]),
        ("0-7/3", [0, 3, 6]),
        ("single:0-1", [3, 4]),
        ("double:2, single:4", [2, 7]),
        ([1, 5], [1, 5]),
        (6, [6]),
        (range(2, 4), [2, 3]),
    ],
)
def test_blocks(blocks, expected):
    assert list(Where(blocks=blocks).select(SITES)) == expected


def test_heads():
    assert Where(heads="L1H3 L6H0, L6H2").select(SITES) == {1: (3,), 6: (0, 2)}
    assert Where(blocks="double", heads="H1").select(SITES) == {0: (1,), 1: (1,), 2: (1,)}
    assert Where(blocks="single", heads="L1H3").select(SITES) == {}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [("all", range(10)), ("0-2", [0, 1, 2]), ("7", [7]), ("0%-25%", [0, 1, 2]), ("50%-100%", range(5, 10)),
     ((0.0, 0.4), range(4)), ("0,9", [0, 9]), ("20-30", [])],
)  # fmt: skip
def test_steps(steps, expected):
    where = Where(steps=steps)
    assert [i for i in range(10) if where.acts_at(Step(i, 10, torch.tensor(0.0), 0))] == list(expected)


@pytest.mark.parametrize(
    ("a", "b", "meet"),
    [("0-4", "5-9", False), ("0-5", "5-9", True), ("0%-50%", "50%-100%", False), ("0%-51%", "50%-100%", True),
     ("all", "3", True), ("0-4", "50%-60%", True), ("1,8", "2-7", False)],
)  # fmt: skip
def test_may_meet(a, b, meet):
    assert Where(steps=a).may_meet(Where(steps=b)) is meet
    assert Where(steps=b).may_meet(Where(steps=a)) is meet


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("blocks", "19..56", "cannot read"), ("blocks", "5-3", "backwards"), ("blocks", [], "expected"),
     ("heads", "14/7", "cannot read"), ("steps", "40%", "cannot read"), ("steps", "9-1", "backwards")],
)  # fmt: skip
def test_unreadable(field, value, message):
    with pytest.raises(ValidationError, match=message):
        Where(**{field: value})


@pytest.mark.parametrize(
    ("where", "message"),
    [({"blocks": "8"}, "blocks 0-7"), ({"blocks": "single:5"}, "single blocks 0-4"), ({"blocks": "joint"}, "double, single"),
     ({"heads": "L1H4"}, "heads 0-3"), ({"heads": "L9H0"}, "blocks 0-7")],
)  # fmt: skip
def test_not_in_this_model(where, message):
    with pytest.raises(ControlError, match=message):
        Where(**where).select(SITES)


def test_json_round_trip():
    where = Where(blocks=[1, 2], heads="L1H3 L2H0", steps=(0.0, 0.4))
    assert Where.model_validate_json(where.model_dump_json()) == where
