"""`attnctrl edit`: what it writes, that its recipe replays, and one line for every bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_command_line import call

from attnctrl import read_recipe
from attnctrl.app.edit_cli import region_of

FAST = ["--steps", "2", "--device", "cpu", "--model", "tiny-flux"]


def test_edits_are_written_and_replayed(monkeypatch, tmp_path, capsys):
    out, again = tmp_path / "edits", tmp_path / "again"
    words = ["edit", "a red car, flat icon", "a blue car, flat icon", "a blue house, flat icon", *FAST]
    assert call(monkeypatch, *words, "--rounds", "--region", "car", "--out", str(out)) == 0
    names = ["00.png", "01-plain.png", "01-region.png", "01.png", "02-plain.png", "02-region.png", "02.png"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "recipe.json", "sheet.png"]
    recipe = read_recipe(out / "01.png")
    assert [one.of for one in recipe.edits] == [0, 1]
    assert recipe.edits[0].region.words == "car"
    assert call(monkeypatch, "run", str(out / "recipe.json"), "--out", str(again)) == 0
    assert "3 of 3 pictures are identical" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--region", "dog"], "there is no word 'dog' in the prompt; its words are a, red, car"),
        (["--region", "0:0:2:1"], "write left, top, right, bottom as shares of the frame"),
        (["--region", "0.1.1:0:1:1"], "write left:top:right:bottom, such as 0:0:0.5:1"),
        (["--region", "none.png"], "there is no picture at none.png"),
        (["--keep"], "--keep keeps what lies outside of a region: add --region"),
        (["--threshold", "0.5"], "--threshold and --edge are of a region: add --region"),
        (["--region", "car", "--threshold", "1.5"], "threshold"),
        (["--control", "consistedit:alpha=2"], "alpha"),
        (["--control", "consistedit:region=dog"], "no word 'dog'"),
        (["--control", "consistedit:steps=40"], "acts at steps 40, and this run has steps 0-1"),
        (["--size", "63"], "63"),
        (["--model", "nosuch"], "there is no model 'nosuch'"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, tmp_path, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "edit", "a red car", "a blue car", *FAST, *words) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
    assert not list(Path().iterdir())


def test_regions_are_written_in_three_ways(tmp_path):
    mask = tmp_path / "mask.png"
    Image.new("L", (32, 32), 255).save(mask)
    found = region_of(["car", "0:0:0.5:1", str(mask)], 0.2, 1.0)
    first, second = found.parts
    assert (first.parts[0].words, first.parts[0].threshold, first.parts[1].box) == ("car", 0.2, (0, 0, 0.5, 1))
    assert second.mask.size == (32, 32)
    assert second.edge == 1.0
