"""Metrics of edits: likeness inside a part, what the judges' readings come to, what has no value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from runs import noise

from attnctrl import ControlError
from attnctrl.embedded.backdrops import NAMES, Backdrops, _empty, bands
from attnctrl.embedded.subjects import COLOR_NAMES, SUBJECTS, Seen
from attnctrl.evals.edits import jury
from attnctrl.evals.edits.likeness import canny_ssim, overlap, psnr, ssim, widened
from attnctrl.evals.edits.sets import EditCase
from attnctrl.evals.metrics.edits import DrawnEdit
from attnctrl.evals.metrics.kinds import EDITS, higher_is_better, metric, metrics, says
from attnctrl.evals.objectives import Models

# likeness


def two() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return a, np.clip(a.astype(int) + rng.integers(-60, 60, a.shape), 0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_scikit_images():
    a, b = two()
    everywhere, inner = np.ones(a.shape[:2], bool), np.zeros(a.shape[:2], bool)
    inner[5:-5, 5:-5] = True
    assert psnr(a, b, everywhere) == pytest.approx(17.8546922841011)
    # structural_similarity(a, b, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, data_range=255),
    # scikit-image 0.26, which leaves a border of 5 px out
    assert ssim(a, b, inner) == pytest.approx(0.9044632259978186)
    assert ssim(a, b) == pytest.approx(0.9038396350860568)


def test_only_the_part_counts():
    a, _ = two()
    b, part = a.copy(), np.zeros(a.shape[:2], bool)
    b[:10], part[30:] = 0, True
    assert psnr(a, b, part) == 60
    assert ssim(a, b, part) == pytest.approx(1)
    assert psnr(a, b, ~part) < 20
    assert ssim(a, b, ~part) < 0.9
    assert psnr(a, b, np.zeros_like(part)) is None
    assert ssim(a, b, np.zeros_like(part)) is None


def test_canny_ssim_is_of_edges_not_of_colors():
    square = np.full((64, 64, 3), 30, np.uint8)
    square[20:44, 20:44] = (220, 200, 30)
    other, moved = square.copy(), np.roll(square, 12, 1)
    other[20:44, 20:44] = (220, 120, 230)
    assert canny_ssim(square, other) == pytest.approx(1)
    assert canny_ssim(square, moved) < 0.9
    assert ssim(square, other) < ssim(square, square)


def test_masks():
    a, b = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    assert overlap(a, b) == 1
    a[:4], b[2:6] = True, True
    assert overlap(a, b) == pytest.approx(2 / 6)
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    grown = widened(dot, 2)
    assert grown[4, 2:7].all()
    assert grown[2:7, 4].all()
    assert not grown[4, 1]
    assert not grown[2, 2]


# readings


def seen(*things: tuple[str, str, slice, slice], side: int = 16) -> Seen:
    """Subjects with colors that fill parts of a picture of 64 px, on cells of 4."""
    where, colors = np.zeros((1, len(SUBJECTS) + 1, side, side)), np.full((1, len(COLOR_NAMES), side, side), 0.01)
    where[:, -1] = 1
    for name, color, rows, columns in things:
        where[0, :, rows, columns] = 0
        where[0, SUBJECTS.index(name), rows, columns] = 1
        colors[0, COLOR_NAMES.index(color), rows, columns] = 0.9
    return Seen(where, colors, 4)


LEFT, RIGHT, ALL = slice(1, 7), slice(9, 15), slice(4, 12)
BOTH = ["fox", "key"], ["red", None]


class Told(jury.Jury):
    """Judges that see what they are told."""

    def __init__(self, seen: Seen, style: str = "comic", backdrop: str = "snow") -> None:
        self.told, self._read = seen, {}
        self.styles = type("Styles", (), {"named": lambda self, images, among: [style]})()
        self.backdrops = type("Backdrops", (), {"named": lambda self, image, style, objects: backdrop})()

    def seen(self, picture: Image.Image, small: bool) -> Seen:
        return self.told


def case(kind: str, before: tuple, after: tuple, **more: object) -> EditCase:
    """An edit of subjects and colors in a relation."""

    def shown(subjects: list[str], colors: list[str | None], relation: str | None = "left of") -> dict:
        several = {"relation": relation} if len(subjects) > 1 else {}
        return {"subjects": subjects, "colors": colors, "style": "comic", **several}

    body = {"id": "a", "kind": kind, "source": "x", "target": "y", **more}
    return EditCase.model_validate({**body, "before": shown(*before), "after": shown(*after)})


FOX, KEY = ("fox", "red", ALL, LEFT), ("key", "blue", ALL, RIGHT)
EDIT_CASES = {
    "object": (case("change object", BOTH, (["cat", "key"], ["red", None])), [FOX, KEY], ("fox",), (False, True)),
    "color": (case("change color", BOTH, (["fox", "key"], ["pink", None])), [FOX, KEY], ("fox",), (False, True)),
    "color done": (case("change color", (["fox"], ["pink"]), (["fox"], ["red"])), [FOX], ("fox",), (True, True)),
    "wrong rest": (case("change color", (["cat"], ["pink"]), (["cat"], ["red"])), [FOX], ("cat",), (True, False)),
    "removed": (case("remove", BOTH, (["fox"], ["red"])), [FOX], ("key",), (True, True)),
    "still there": (case("remove", BOTH, (["fox"], ["red"])), [FOX, KEY], ("key",), (False, True)),
    "added": (case("add", (["fox"], ["red"]), BOTH), [FOX, KEY], (), (True, True)),
    "not added": (case("add", (["fox"], ["red"]), BOTH), [FOX], (), (False, True)),
    "moved": (case("move", BOTH, (*BOTH, "right of")), [FOX, KEY], ("fox", "key"), (False, True)),
    "stayed": (case("move", (*BOTH, "right of"), BOTH), [FOX, KEY], ("fox", "key"), (True, True)),
    "style": (case("change style", (["fox"], ["red"]), (["fox"], ["red"])), [FOX], (), (True, True)),
}


@pytest.mark.parametrize(("one", "things", "about", "wanted"), EDIT_CASES.values(), ids=EDIT_CASES)
def test_what_an_edit_is_about_and_whether_it_is_done(one, things, about, wanted):
    assert jury.edited(one) == about
    assert jury.done(Told(seen(*things)), one, noise(64)[0]) == wanted


def test_styles_and_backdrops_are_read_as_well():
    one = case("change background", (["fox"], []), (["fox"], []))
    after = one.after.model_copy(update={"background": "snow"})
    one = one.model_copy(update={"after": after})
    told = seen(FOX)
    assert jury.done(Told(told), one, noise(64)[0]) == (True, True)
    assert jury.done(Told(told, backdrop="beach"), one, noise(64)[0]) == (False, True)
    assert jury.done(Told(told, style="sticker"), one, noise(64)[0]) == (True, False)
    assert (
        jury.done(Told(told, style="sticker"), one.model_copy(update={"kind": "change style"}), noise(64)[0])[0]
        is False
    )


def test_sizes_that_the_judges_do_not_know_are_refused():
    with pytest.raises(ControlError, match="up to 128 px, multiples of 8, not 136 x 136 px"):
        jury.Jury.seen(Told(seen()), noise(136)[0], False)


def test_words_that_the_judges_do_not_know_are_refused():
    known = case("change color", (["fox"], ["pink"]), (["fox"], ["red"])).before
    jury.check_known(known)
    for change, told in (
        ({"subjects": ("owl",)}, "no subject 'owl'"),
        ({"colors": ("teal",)}, "no color 'teal'"),
        ({"style": "oil"}, "no style 'oil'"),
        ({"background": "moon"}, "no background 'moon'"),
    ):
        with pytest.raises(ControlError, match=told):
            jury.check_known(known.model_copy(update=change))


def test_the_backdrop_judge_reads_empty_scenes():
    judge, rng = Backdrops.load(), np.random.default_rng(7)
    right = [judge.named((_empty("comic", name, rng) * 255).astype(np.uint8), "comic") == name for name in NAMES * 3]
    assert np.mean(right) > 0.9
    with pytest.raises(KeyError):
        judge.named(np.zeros((64, 64, 3), np.uint8), "oil")


def test_bands_leave_objects_out():
    image = np.zeros((64, 64, 3))
    image[:32], objects = 0.5, np.zeros((64, 64), bool)
    image[10:20, :40], objects[10:20, :40] = 1, True
    clean = np.repeat([0.5, 0.0], 12)
    assert bands(image, objects) == pytest.approx(clean)
    assert bands(image) != pytest.approx(clean)
    objects[8:16] = True
    assert bands(image, objects) == pytest.approx(clean), "a full band takes its neighbours'"


# metrics


def drawn(**more: object) -> DrawnEdit:
    a, b = noise(64, 64)
    still = np.zeros((64, 64), bool)
    still[:32] = True
    half = Image.fromarray(~still).convert("L")
    one = case("change color", (["fox"], ["pink"]), (["fox"], ["red"]))
    own = DrawnEdit(one, a, b, half, True, ~still, still, True, True, Told(seen(FOX)))
    return replace(own, **more)


def values(**more: object) -> dict[str, float | None]:
    found = drawn(**more)
    return {one.name: one(found) for one in metrics(EDITS, of="edit")}


def test_every_metric_of_an_edit():
    got = values()
    assert (got["edit-success"], got["rest-as-asked"], got["source-as-asked"], got["untaken"]) == (1, 1, 1, 0)
    assert got["region-iou"] == 1
    assert got["background-psnr"] < 10
    source = np.asarray(drawn().source)
    kept = np.where(drawn().still[..., None], source, 255 - source)
    assert values(picture=Image.fromarray(kept))["background-psnr"] == 60, "what changed is not background"
    assert values(picture=Image.fromarray(kept))["background-ssim"] > 0.8 > values()["background-ssim"]
    same = values(picture=drawn().source, took=False)
    assert (same["background-psnr"], same["background-ssim"], same["canny-ssim"]) == (60, 1, 1)
    assert same["untaken"] == 1


def test_what_has_no_value():
    assert {name for name, value in values(sound=False).items() if value is None} == {
        "edit-success", "rest-as-asked", "region-iou",
    }  # fmt: skip
    assert values(sound=None, jury=None)["source-as-asked"] is None
    assert values(still=None, changing=None)["background-psnr"] is None
    assert values(named=False)["region-iou"] is None
    same = drawn().case.model_copy(update={"target": "x"})
    assert values(case=same)["untaken"] is None, "nothing was to change"


def test_metrics_of_edits_and_of_sets_are_told_apart():
    for name in ("style-agreement", "frechet-lite", "lite-style"):
        with pytest.raises(ControlError, match=f"{name} is measured of sets"):
            metric(name, Models(), "edit")
    with pytest.raises(ControlError, match="edit-success is measured of edits"):
        metric("edit-success", Models())
    with pytest.raises(ControlError, match="did you mean untaken"):
        metric("untaked", Models(), "edit")
    with pytest.raises(ControlError, match="takes nothing after the colon"):
        metric("untaken:x", Models(), "edit")
    assert metric("contrast", Models(), "edit")(drawn()) > 0
    assert [name for name in EDITS if not higher_is_better(name)] == ["untaken"]
    assert all(says(name) for name in EDITS)
