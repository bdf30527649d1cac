"""Fixtures of the tests of runs: a tiny pipeline, and undisturbed runs to compare with."""

from __future__ import annotations

import shutil

import pytest
from runs import (
    SETS,
    begin,
    result,
    tiny_pipe,
)  # fmt: skip

from attnctrl.evals.metrics.metric import DrawnSet

ONE, FEW = SETS[:1], SETS[:2]
WRITES = 2 + 2 * 3
"""Files and lines of a run of one set: config.json, sets.jsonl, and two pictures and a line for each of two arms."""


@pytest.fixture(scope="module")
def drawer():
    return tiny_pipe()


@pytest.fixture(scope="module")
def whole(drawer, tmp_path_factory):
    """An undisturbed run, and what must come out of every other one."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    begin(folder, drawer).run()
    return folder, result(folder)


@pytest.fixture(scope="module")
def small(drawer, tmp_path_factory):
    """The same of two sets."""
    folder = tmp_path_factory.mktemp("small") / "run"
    begin(folder, drawer, FEW).run()
    return folder, result(folder)


@pytest.fixture(scope="module")
def single(drawer, tmp_path_factory):
    """The same of one set."""
    folder = tmp_path_factory.mktemp("single") / "run"
    begin(folder, drawer, ONE).run()
    return folder, result(folder)


@pytest.fixture
def copied(small, tmp_path):
    """A copy of the small run, to be damaged."""
    return shutil.copytree(small[0], tmp_path / "copied")


def as_drawn(**more):
    values = {"prompts": ("a fox", "a key"), "subjects": ("a fox", "a key"), "style": "comic"}
    return DrawnSet(**{**values, **more})
