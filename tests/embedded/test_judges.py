"""The judges: maps read as drawn, order and colors told, their artwork apart from the generator's, figures stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="the embedded world is drawn with opencv: install attnctrl[train]")

from attnctrl.embedded import artwork, canvas, scenes
from attnctrl.embedded.judge import CIRCULAR, PARAMS, Judge, declared, decode_params, encode_params
from attnctrl.embedded.judge_artwork import roughen, variants
from attnctrl.embedded.subjects import COLOR_NAMES, SUBJECTS, Seen, all_found, box, in_order, overlap


def seen(*blobs: tuple[str, slice, slice], color: str = "red") -> Seen:
    """One 8x8 map with each subject sure of its rows and columns, everything in one color."""
    where = np.zeros((1, len(SUBJECTS) + 1, 8, 8), np.float32)
    where[:, -1] = 1
    for subject, rows, columns in blobs:
        where[0, :, rows, columns] = 0
        where[0, SUBJECTS.index(subject), rows, columns] = 1
    colors = np.full((1, len(COLOR_NAMES), 8, 8), 0.02, np.float32)
    colors[:, COLOR_NAMES.index(color)] = 0.86
    return Seen(where, colors)


LEFT, RIGHT, MIDDLE = slice(0, 3), slice(5, 8), slice(2, 6)


def test_maps_say_what_is_where() -> None:
    found = seen(("fox", MIDDLE, LEFT), ("mushroom", slice(3, 5), RIGHT)).found()[0]
    assert [thing.subject for thing in found] == ["fox", "mushroom"]
    assert found[0].cells == pytest.approx(12)
    assert found[0].center == pytest.approx((1.5 / 8, 0.5))
    assert found[1].center == pytest.approx((6.5 / 8, 0.5))
    assert all_found(found, ("mushroom", "fox"))
    assert not all_found(found, ("mushroom", "key"))


@pytest.mark.parametrize(
    ("fox", "key", "holding"),
    [
        ((MIDDLE, LEFT), (MIDDLE, RIGHT), "left of"),
        ((MIDDLE, RIGHT), (MIDDLE, LEFT), "right of"),
        ((LEFT, MIDDLE), (RIGHT, MIDDLE), "above"),
        ((RIGHT, MIDDLE), (LEFT, MIDDLE), "below"),
    ],
)
def test_only_the_asked_order_is_right(fox: tuple, key: tuple, holding: str) -> None:
    found = seen(("fox", *fox), ("key", *key)).found()[0]
    assert in_order(found, ("fox", "key"), holding)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[holding]
    assert not in_order(found, ("fox", "key"), opposite)
    assert in_order(found, ("key", "fox"), opposite)
    assert not in_order(found, ("fox", "star"), holding)


def test_three_in_a_row_are_each_left_of_the_next() -> None:
    row = seen(("fox", MIDDLE, slice(0, 2)), ("key", MIDDLE, slice(3, 5)), ("car", MIDDLE, slice(6, 8))).found(3)[0]
    assert in_order(row, ("fox", "key", "car"), "left of")
    assert in_order(row, ("car", "key", "fox"), "right of")
    assert not in_order(row, ("fox", "car", "key"), "left of")
    assert not all_found(row[:2], ("fox", "key", "car"))


def test_objects_are_counted_and_outlined() -> None:
    maps = seen(("fox", MIDDLE, LEFT), ("key", MIDDLE, RIGHT), ("car", slice(0, 1), slice(4, 5)))
    assert maps.counts() == [3]
    assert seen(("fox", MIDDLE, LEFT), ("fox", MIDDLE, RIGHT)).counts() == [2]
    mask = maps.mask(0, "fox")
    assert mask.shape == (64, 64)
    assert overlap(box(mask), (0, 16, 24, 48)) > 0.75
    assert box(np.zeros((8, 8), bool)) == (0, 0, 0, 0)
    assert overlap((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(1 / 3)


def test_a_speck_is_no_object() -> None:
    speck = seen(("fox", MIDDLE, LEFT), ("key", slice(0, 1), slice(7, 8)))
    speck.where[:, :, 0, 7] *= 0.9
    assert [thing.subject for thing in speck.found()[0]] == ["fox"]
    assert not all_found(speck.found()[0], ("fox", "key"))
    assert speck.subjects() == ["fox"]
    assert speck.subjects(among=("key", "car")) == ["key"]


def test_the_color_is_read_where_the_subject_stands() -> None:
    maps = seen(("fox", MIDDLE, LEFT), ("key", MIDDLE, RIGHT), color="blue")
    maps.colors[0, :, :, 4:] = maps.colors[0][::-1, :, 4:]
    mirrored = COLOR_NAMES[len(COLOR_NAMES) - 1 - COLOR_NAMES.index("blue")]
    assert maps.color_of(["fox"]) == ["blue"]
    assert maps.color_of(["key"]) == [mirrored]
    assert [thing.color for thing in maps.found()[0]] == ["blue", mirrored]


def test_calibration_counts_what_was_read() -> None:
    from attnctrl.embedded.subject_training import Drawn, calibrate

    rng = np.random.default_rng(0)
    plain = replace(scenes.PAIRED, shapes=(((64, 64), 1.0),), pairs=0.0)
    fox = scenes.sample(rng, replace(plain, subjects=("fox",), styles=("comic",)))
    single = replace(fox, objects=(replace(fox.objects[0], color="green"),))
    maps = [seen(("fox", MIDDLE, MIDDLE), color="green"), seen(("key", MIDDLE, MIDDLE), color="red")]
    both = Seen(np.concatenate([m.where for m in maps]), np.concatenate([m.colors for m in maps]))
    pair = scenes.sample(rng, replace(plain, subjects=("fox", "key"), styles=("comic",), pairs=1.0))
    pair = replace(pair, objects=tuple(replace(pair.objects[0], subject=name, color="red") for name in ("fox", "key")))
    halves = seen(("fox", MIDDLE, LEFT), ("key", MIDDLE, RIGHT))
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, 16:48, :24] = masks[1, 16:48, 40:] = 1
    nothing = torch.zeros(0)
    result = calibrate(
        lambda shown, *more: halves if more else both,
        Drawn(np.zeros((2, 64, 64, 3), np.uint8), [single, single], [], nothing, nothing),
        Drawn(np.zeros((1, 64, 64, 3), np.uint8), [replace(pair, relation="right of")], [masks], nothing, nothing),
    )
    right = result["right"]
    assert right["subject"] == right["subject, comic"] == [0.5, 2]
    assert right["color"] == [0.5, 2]
    assert (right["both of two found"], right["both found, in order"]) == ([1.0, 1], [0.0, 1])
    assert (right["each in its color"], right["count"]) == ([1.0, 1], [1.0, 1])
    assert min(right["mask"][0], right["box"][0]) > 0.75
    assert result["subject_taken_for"]["fox"] == {"fox": 1, "key": 1}


def test_the_judges_artwork_is_not_the_generators() -> None:
    assert not set(artwork.JUDGE_SETS) & set(artwork.GENERATOR_SETS)
    assert set(artwork.PARTIAL_SETS) < set(artwork.JUDGE_SETS)
    assert set(artwork.JUDGE_SETS) | set(artwork.GENERATOR_SETS) == set(artwork.PACKAGES)


def test_variants_fill_what_a_set_lacks() -> None:
    disc = np.zeros((128, 128, 4), np.uint8)
    disc[32:96, 32:96] = (200, 40, 40, 255)
    art = {f"notov1/{name}": disc for name in scenes.SUBJECT_NAMES}
    ring = np.zeros_like(disc)
    ring[32:96, 32:96, 3] = 255
    ring[48:80, 48:80, 3] = 0
    art["monotone/fox"] = ring
    varied, sets = variants(art, 2, np.random.default_rng(0))
    assert len(sets) == 2 * len(artwork.JUDGE_SETS)
    assert set(varied) == {f"{name}/{subject}" for name in sets for subject in scenes.SUBJECT_NAMES}
    assert np.array_equal(varied["notov1.0/key"], disc)
    assert np.array_equal(varied["fxemoji.0/key"], disc)
    assert not np.array_equal(varied["notov1.1/key"], disc)
    painted = varied["monotone.0/fox"]
    assert (painted[64, 64, 3], painted[4, 4, 3]) == (255, 0)
    assert painted[64, 64, :3].mean() > painted[40, 40, :3].mean() + 30


def test_roughened_pictures_stay_near() -> None:
    images = np.full((8, 16, 16, 3), 128, np.uint8)
    rough = roughen(images, np.random.default_rng(0))
    assert rough.dtype == np.uint8
    assert 0 < np.abs(rough.astype(int) - images).mean() < 30


def test_parameters_survive_the_nets_form() -> None:
    values = torch.rand(20, len(PARAMS), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decode_params(encode_params(values)), values, atol=1e-5)
    assert set(CIRCULAR) < set(PARAMS)


def test_the_style_judge_reads_what_a_style_declares_and_states_its_figures() -> None:
    judge = Judge.load()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    read = judge(images, style="watercolor")
    assert read["style"].shape == (3, len(scenes.STYLE_NAMES))
    assert read["style"].sum(1) == pytest.approx(1, abs=1e-5)
    shown = declared()[scenes.STYLE_NAMES.index("watercolor")].numpy()
    assert np.array_equal(~np.isnan(read["params"]), np.tile(shown, (3, 1)))
    assert judge.named(images, ("comic",)) == ["comic"] * 3
    assert judge.calibration["style_top1"] > 0.9


def test_the_subject_judge_reads_colored_objects() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    from attnctrl.embedded.subjects import SubjectJudge

    y, x = np.mgrid[:128, :128]
    alpha = np.clip(60 - np.hypot(y - 64, x - 64), 0, 1)
    light = 1.15 - np.hypot(y - 40, x - 50)[..., None] / 300  # on an unshaded ball, pink is read as purple
    ball = np.dstack([np.clip(light * np.array([200, 60, 60]), 0, 255), alpha * 255]).astype(np.uint8)
    images = []
    for color in COLOR_NAMES:
        thing = scenes.Object("apple", color, "flat", False, 0.0, 0.0, (32.0, 32.0), 48.0)
        params = canvas.StyleParams(0.2, 0.3, 0.3, 0.3, 0.2)
        scene = scenes.Scene(64, 64, (thing,), None, None, "flat icon", params, "", 1)
        images.append(scenes.render(scene, {"flat/apple": ball}).image)
    judge = SubjectJudge.load()
    read = judge(np.stack(images))
    assert read.color_of(["apple"] * len(images)) == list(COLOR_NAMES)
    assert read.where.shape == (len(COLOR_NAMES), len(SUBJECTS) + 1, 8, 8)
    assert judge.calibration["right"]["subject"][0] > 0.9
