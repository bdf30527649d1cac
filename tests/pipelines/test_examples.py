"""The examples: each runs as it stands, is short, and leaves a sheet of pictures in the folder that it is given."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attnctrl

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def loaded():
    """`load` that keeps each model and asks for three steps."""
    kept = {}
    true = attnctrl.load

    def load(name):
        if name not in kept:
            pipe = kept[name] = true(name, device="cpu")
            pipe.settings = pipe.settings.model_copy(update={"num_inference_steps": 3})
        return kept[name]

    return load


def test_there_are_some():
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_draws(path, loaded, tmp_path, monkeypatch, table):
    assert len(path.read_text().splitlines()) <= 40
    monkeypatch.setattr(attnctrl, "load", loaded, raising=False)
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "new" / "folder")])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    sheet = tmp_path / "new" / "folder" / f"{path.stem.replace('_', '-')}.png"
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [sheet]
    with Image.open(sheet) as picture:
        assert min(picture.size) > 200
        assert np.asarray(picture.convert("L")).std() > 20
