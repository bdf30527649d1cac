"""Words' regions against true masks: what is compared, and which choice is called the best."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import tiny_sd3

from attnctrl import Region, controlled
from attnctrl.embedded.scenes import PAIRED
from attnctrl.evals.edits.masks import (
    BLOCKS,
    STEPS,
    THRESHOLDS,
    Measured,
    best_of,
    figures,
    found_by,
    measured,
    region,
    table,
    write,
)
from attnctrl.evals.edits.replay import replayed
from attnctrl.evals.edits.scenes import OUTSIDE, Asked, scenes_of


@pytest.fixture(scope="module")
def art():
    """Artwork of plain discs."""
    y, x = np.mgrid[:128, :128] - 63.5
    disc = np.zeros((128, 128, 4), np.uint8)
    disc[np.hypot(y, x) < 60] = (200, 40, 40, 255)
    return {f"{name}/{subject}": disc for name in PAIRED.artworks for subject in PAIRED.subjects}


@pytest.fixture(scope="module")
def pipe():
    stock = tiny_sd3()
    own = controlled(type(stock))(**stock.components)
    own.set_progress_bar_config(disable=True)
    return own


def test_scenes_and_their_true_masks(art):
    scenes = scenes_of(4, 0)
    assert scenes == scenes_of(4, 0) != scenes_of(4, 1)
    assert len(scenes) == 8
    kinds = {one.kind for scene in scenes for one in scene.words}
    assert kinds == {"subject", "color", "color and subject", OUTSIDE, "background", "style", "subject of two"}
    for scene in scenes:
        picture, masks = scene.drawn(art)
        by_kind = {}
        for one, mask in zip(scene.words, masks, strict=True):
            assert one.words in scene.prompt
            assert mask.shape == picture.shape[:2]
            by_kind.setdefault(one.kind, []).append(mask)
        if len(scene.case.subjects) > 1:
            first, second = by_kind["subject of two"]
            assert first.any()
            assert second.any()
            assert not (first & second).any()
            continue
        (subject,) = by_kind["subject"]
        assert 0.1 < subject.mean() < 0.8
        assert (subject == by_kind["color"][0]).all()
        assert by_kind["style"][0].all()
        if scene.background:
            assert (by_kind["background"][0] == ~subject).all()
            assert (by_kind[OUTSIDE][0] == ~subject).all()


def test_a_region_is_what_a_source_finds(pipe, art):
    scene = scenes_of(1, 0)[0]
    picture, _ = scene.drawn(art)
    from PIL import Image

    opened = replayed(pipe, Image.fromarray(picture), scene.prompt, 0, num_inference_steps=2, height=64, width=64)
    (name,) = scene.case.subjects
    values = opened.source.map(name).reshape(opened.source.grid).double().numpy()
    for threshold in (0.1, 0.5):
        wanted = Region(words=name, threshold=threshold).image((64, 64), opened.source.find)
        assert (region(values, threshold, (64, 64)) == (np.asarray(wanted) > 127)).all()
    outside = found_by(Asked(OUTSIDE, name), values, 0.5, (64, 64))
    assert (outside == ~region(values, 0.5, (64, 64))).all()


def test_every_choice_is_measured_and_written(pipe, art, tmp_path):
    scenes = scenes_of(2, 3)[2:4]
    calls = []
    found = measured(pipe, scenes, art, 3, lambda done, total, left: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    assert len(found) == sum(len(scene.words) for scene in scenes)
    for one in found:
        blocks = {choice[0] for choice in one.overlaps}
        assert set(BLOCKS) < blocks
        assert len(one.overlaps) == len(blocks) * len(STEPS) * len(THRESHOLDS)
        assert all(0 <= value <= 1 for value in one.overlaps.values())
        assert 0.5 < one.ceiling <= 1
        assert not np.array_equal(one.maps["all", "0%-33%"], one.maps["all", "66%-100%"])
        thirds = [one.maps["late", steps] for steps in STEPS[1:]]
        assert one.maps["late", "all"] == pytest.approx(np.mean(thirds, axis=0)), "three steps, one each"
    names = write(found, "tiny", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    told = json.loads((tmp_path / "masks.json").read_text())
    assert set(told["kinds"]) == {one.asked.kind for one in found}
    assert told["things"]["best"]["blocks"] in BLOCKS


def made_up(kind, values):
    """A word whose overlaps are given by choice."""
    none = np.zeros((8, 8))
    objects = (0,) if kind == "subject" else ()
    return Measured(Asked(kind, "fox", objects), "a fox", none, none > 0, {}, values, 0.9)


def test_the_best_choice_has_the_greatest_mean():
    a, b, alone = ("all", "all", 0.1), ("late", "all", 0.3), ("L0 (joint 0)", "all", 0.3)
    found = [made_up("subject", {a: 0.2, b: 0.5, alone: 0.9}), made_up("subject", {a: 0.4, b: 0.3, alone: 0.9})]
    found.append(made_up("style", {a: 0.9, b: 0.0, alone: 0.0}))
    assert best_of(found[:2], BLOCKS)["blocks"] == "late"
    assert best_of(found[:2], BLOCKS)["mean"][0] == pytest.approx(0.4)
    assert best_of(found[:2], None)["blocks"] == "L0 (joint 0)"
    told = figures(found)
    assert told["things"]["best"]["threshold"] == 0.3, "of things alone"
    assert told["kinds"]["style"]["best"]["blocks"] == "all"


def test_a_table_has_a_line_for_every_kind(pipe, art):
    found = measured(pipe, scenes_of(1, 0), art, 2)
    text = table(found, figures(found), "tiny")
    for kind in ("subject", "color", "style", "subject of two", "all things"):
        assert f"| {kind} |" in text
    assert "Blocks late, all steps:" in text
