"""The figures of runs, metrics among them, are what they say; two runs compared."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from run_fixtures import FEW
from runs import (
    SETS,
    Light,
    Picky,
    Spread,
    begin,
    made_up,
)  # fmt: skip

from attnctrl import ControlError
from attnctrl.evals.metrics import lite
from attnctrl.evals.metrics.frechet import features, frechet
from attnctrl.evals.metrics.kinds import EMBEDDED, GENERAL
from attnctrl.evals.runs import report
from attnctrl.evals.runs.arms import arms
from attnctrl.evals.runs.config import picture_file
from attnctrl.evals.runs.diff import compared
from attnctrl.evals.runs.diff import table as diff_table
from attnctrl.evals.runs.finished import read_run
from attnctrl.evals.runs.report import frechet_of, table
from attnctrl.evals.runs.summary import ArmSummary, Figure, axes_of, costs, figure_of, pareto, summarise, worst_first


def test_means_and_paired_differences():
    nan = None
    run = made_up(
        {
            "plain": {"lite-style": [0.1, 0.2, 0.6, nan, 0.5], "lite-diversity": [0.5, 0.5, 0.5, 0.5, 0.5]},
            "aligned": {"lite-style": [0.4, nan, 0.7, 0.9, "x"], "lite-diversity": [0.1, 0.2, 0.3, 0.4, 0.5]},
            "naive": {"lite-style": [0.3]},
        }
    )
    found = summarise(run)
    plain, aligned, naive = (found.of(name) for name in ("plain", "aligned", "naive"))
    assert plain.means["lite-style"].mean == pytest.approx((0.1 + 0.2 + 0.6 + 0.5) / 4)
    assert aligned.means["lite-style"].mean == pytest.approx((0.4 + 0.7 + 0.9) / 3)
    assert (plain.means["lite-style"].sets, aligned.means["lite-style"].sets) == (4, 3)
    gap = aligned.differences["lite-style"]
    assert gap.mean == pytest.approx((0.3 + 0.1) / 2)
    assert gap.sets == 2
    assert gap.low == pytest.approx(0.1)
    assert gap.high == pytest.approx(0.3)
    assert gap.certain
    assert plain.differences == {}
    assert (plain.failed, plain.missing) == (0, 0)
    assert (aligned.failed, aligned.missing) == (1, 0)
    assert (naive.failed, naive.missing) == (0, 4)
    assert "lite-diversity" not in naive.means
    assert aligned.means["lite-diversity"].sets == 4, "nothing of a failed item counts"
    assert found.axes == ("lite-diversity", "lite-style")
    other = summarise(run, "aligned")
    assert other.of("plain").differences["lite-style"].mean == pytest.approx(-0.2)
    assert other.of("aligned").differences == {}
    with pytest.raises(
        ControlError, match="the run has no method 'naiv' to compare with; it has plain, aligned, naive"
    ):
        summarise(run, "naiv")
    assert figure_of(np.array([np.nan])) is None
    text = table(found)
    assert "| aligned | 0.67 [0.40, 0.90] | 0.25 [" in text
    assert "| aligned | **0.20 [0.10, 0.30]** |" in text
    assert "| naive | 0.30 (one set) | – |" in text
    assert not naive.differences["lite-style"].certain
    assert str(naive.means["lite-style"]) == "0.300 (one set)"


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = [abs(f.mean) >= 0 and f.low <= 0.5 <= f.high for f in (figure_of(rng.random(40)) for _ in range(200))]
    assert 0.88 <= np.mean(held) <= 0.99
    for values in (rng.random(30) - 2, rng.random(30) + 1, rng.random(200) - 0.5):
        one = figure_of(values)
        assert one.low <= one.mean <= one.high
        assert one.certain == (one.low > 0 or one.high < 0) == (abs(values.mean()) > 0.4)


def test_a_trade_off_of_the_first_axes_that_there_are():
    assert axes_of(EMBEDDED) == ("subject-as-asked", "style-agreement")
    assert axes_of(GENERAL) == ("lite-diversity", "lite-style")
    assert axes_of(["lite-style", "clip-t:./folder", "dino", "lite-diversity"]) == ("clip-t:./folder", "dino")
    assert axes_of(["lite-style"]) is None
    assert axes_of(["contrast"]) is None


def beaten(one, others, ups):
    """Whether another is at least as good in both and better in one."""
    for other in others:
        gaps = [(b - a) * up for a, b, up in zip(one, other, ups, strict=True)]
        if all(gap >= 0 for gap in gaps) and any(gap > 0 for gap in gaps):
            return True
    return False


@pytest.mark.parametrize(
    ("axes", "ups"), [(("lite-diversity", "lite-style"), (1, 1)), (("leakage", "lite-style"), (-1, 1))]
)
def test_the_front_is_what_nothing_beats(axes, ups):
    rng, arm = np.random.default_rng(0), arms(["plain"])[0]
    for trial in range(40):
        points = rng.integers(0, 5, (trial % 9 + 1, 2)).astype(float)  # with ties
        found = [
            ArmSummary(
                arm.model_copy(update={"name": str(i)}),
                {axis: Figure(x, x, x, 1) for axis, x in zip(axes, point, strict=True)}, {}, 0, 0, [],
            )
            for i, point in enumerate(points)
        ]  # fmt: skip
        front = {str(i) for i, point in enumerate(points) if not beaten(point, points, ups)}
        assert pareto(found, axes) == front
        best = Figure(9 * ups[0], 0, 0, 1), Figure(9, 0, 0, 1)
        copies = replace(found[0], arm=arms(["copy"])[0], means=dict(zip(axes, best, strict=True)))
        half = replace(found[0], arm=arm.model_copy(update={"name": "half"}), means={axes[1]: best[1]})
        assert pareto([*found, copies, half], axes) == front


def test_the_front_of_a_summary():
    run = made_up(
        {
            "plain": {"lite-style": [0.1], "lite-diversity": [0.9]},
            "aligned": {"lite-style": [0.8], "lite-diversity": [0.6]},
            "naive": {"lite-style": [0.7], "lite-diversity": [0.5]},
            "copy": {"lite-style": [1.0], "lite-diversity": [0.95]},
        },
        methods=("plain,aligned,naive,copy",),
    )
    found = summarise(run)
    assert [one.arm.name for one in found.arms if one.pareto] == ["plain", "aligned"]
    assert found.as_json()["methods"]["naive"]["pareto"] is False


def test_the_worst_sets_come_first():
    run = made_up(
        {
            "plain": {"lite-style": [0.0, 0.9, 0.1, 0.0, 0.2], "lite-diversity": [0.1] * 5},
            "aligned": {"lite-style": [0.8, 0.2, None, 0.5, "x"], "lite-diversity": [0.5, 0.4, 0.3, 0.2, 0.1]},
            "naive": {"lite-style": [0.6, 0.4, None, None, None]},
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert worst_first(run, summarise(run)) == ["s1", "s3", "s0", "s2", "s4"]
    alone = made_up({"plain": {"leakage": [0.1, 0.9, 0.4]}}, ("leakage",), ("plain",))
    assert worst_first(alone, summarise(alone)) == ["s1", "s2", "s0"], "less is better"


def test_costs_are_of_finished_items(whole):
    found = costs(read_run(whole[0]))
    assert list(found) == ["plain", "aligned"]
    for one in found.values():
        assert one.seconds.sets == len(SETS)
        assert one.seconds.mean > 0
        assert one.peak_mib > 10
        assert one.measuring_share > 0


def square_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def distance(a, b):
    """The Frechet distance, by symmetric square roots in float64."""
    (ma, mb), (ca, cb) = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
    half = square_root(ca)
    return ((ma - mb) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * np.trace(square_root(half @ cb @ half))


def test_the_frechet_distance():
    rng = np.random.default_rng(0)
    for n, m, width in ((200, 150, 8), (90, 70, 40), (12, 9, 30)):
        a = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / width**0.5
        b = rng.normal(size=(m, width)) * 2 + rng.normal(size=width)
        assert frechet(a, b) == pytest.approx(distance(a, b), rel=1e-5)
        assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-5)
        assert frechet(a, a) == pytest.approx(0, abs=1e-4)
        assert frechet(a, a + 1) == pytest.approx(width, rel=1e-4)


def test_the_frechet_distance_of_a_run(drawer, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DRAWS", 4)
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    names = ("lite-style", "lite-diversity", "frechet-lite")
    begin(tmp_path, drawer, SETS[:3], methods=("plain,naive",), metrics=names).run()
    assert frechet_of(made_up({"plain": {"lite-style": [1.0]}}, methods=("plain",))) is None
    run, net = read_run(tmp_path), lite.Lite()
    both = [
        np.concatenate([features(net, run.pictures(arm, one.id)) for one in SETS[:3]]).astype(np.float32)
        for arm in run.config.arms
    ]
    found = frechet_of(run)
    assert list(found) == ["naive"]
    rng, sets = np.random.default_rng(0), [np.split(one, 3) for one in both]
    drawn = [[np.concatenate([one[i] for i in picks]) for one in sets] for picks in rng.integers(0, 3, (4, 3))]
    corrected = 2 * distance(*both[::-1]) - np.mean([distance(*one[::-1]) for one in drawn])
    assert found["naive"].mean == pytest.approx(max(0.0, corrected), rel=1e-3, abs=1e-3)
    assert (found["naive"].sets, 0 <= found["naive"].low <= found["naive"].high) == (3, True)
    assert frechet_of(run, "naive")["plain"].mean == pytest.approx(found["naive"].mean, rel=1e-6)
    assert summarise(run, None, found).of("naive").means["frechet-lite"] == found["naive"]
    with monkeypatch.context() as patch:
        patch.setattr(lite, "Lite", None)
        assert frechet_of(run) == found, "features are kept"
    kept = tmp_path / report.KEPT
    for body in (kept.read_bytes()[:500], b"", b"no archive"):
        kept.write_bytes(body)
        assert frechet_of(run) == found
    path = tmp_path / picture_file(run.config.arms[1], SETS[0].id, 0)
    path.write_bytes(path.read_bytes() + b"\0")
    kept.unlink()
    with pytest.raises(ControlError, match="is not what was drawn"):
        frechet_of(run)


def test_kept_features_are_of_the_same_pictures(drawer, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DRAWS", 2)
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    names = ("lite-style", "lite-diversity", "frechet-lite")
    more = {"methods": ("plain,naive",), "metrics": names}
    begin(tmp_path / "a", drawer, FEW, **more).run()
    begin(tmp_path / "b", drawer, FEW, seed=1, **more).run()
    a = frechet_of(read_run(tmp_path / "a"))
    shutil.copy(tmp_path / "a" / report.KEPT, tmp_path / "b")
    b = frechet_of(read_run(tmp_path / "b"))
    (tmp_path / "b" / report.KEPT).unlink()
    assert frechet_of(read_run(tmp_path / "b")) == b != a


class Lighter(Light):
    def __call__(self, drawn):
        return super().__call__(drawn) + 0.25


def test_two_runs_are_compared_set_by_set(drawer, whole, tmp_path):
    same, seeded = tmp_path / "same", tmp_path / "seeded"
    begin(same, drawer, (SETS[2], SETS[0]), [Lighter(), Spread()]).run()
    found = compared(whole[0], same)
    assert (found.items, found.same) == (4, 4)
    assert found.settings == ["sets_digest"]
    old = read_run(whole[0])
    for one in found.changes:
        arm = old.config.arm(one.method)
        before = [old.row(arm, s.id).values[one.metric] for s in (SETS[0], SETS[2])]
        more = 0.25 if one.metric == "lite-style" else 0
        assert (one.before, one.difference.sets) == (pytest.approx(np.mean(before)), 2)
        assert one.after == pytest.approx(one.before + more)
        assert one.difference.mean == pytest.approx(more)
        assert one.difference.certain == bool(more)
    assert len(found.changes) == 4
    assert found.changes[0].difference.low == pytest.approx(0.25)
    text = diff_table(found)
    assert "4 of 4 items have byte-equal pictures." in text
    assert "The runs differ in sets_digest." in text
    assert "**0.250 [0.250, 0.250]** | 2 |" in text
    begin(seeded, drawer, methods=("naive,aligned:strength=0.5,plain",), seed=3).run()
    other = compared(whole[0], seeded)
    assert (other.items, other.same) == (4, 0)
    assert other.settings == ["baseline", "seed"]
    assert {one.method for one in other.changes} == {"plain"}


def test_an_item_that_is_nowhere_is_not_compared(drawer, whole, tmp_path):
    begin(tmp_path, drawer, measures=[Picky(SETS[0].prompts[0], ValueError("no")), Spread()]).run()
    found = compared(whole[0], tmp_path)
    assert (found.items, found.same) == (6, 6)
    assert {one.difference.sets for one in found.changes} == {3}
    assert all(one.before == one.after for one in found.changes), "means of the same sets"
    assert all(one.before == one.after for one in compared(tmp_path, whole[0]).changes)


def test_runs_with_nothing_in_common_are_not_compared(drawer, small, tmp_path):
    for name, more in (
        ("method", {"methods": ("naive",)}),
        ("metric", {"metrics": ("contrast",)}),
        ("set", {"sets": (FEW[0].model_copy(update={"prompts": ("a fix, ink", "a key, ink")}),)}),
    ):
        begin(tmp_path / name, drawer, **{"sets": FEW, **more}).run()
        with pytest.raises(ControlError, match=f"have no {name} in common; nothing can be compared"):
            compared(small[0], tmp_path / name)


def test_settings_that_differ_under_one_name_are_told(drawer, small, tmp_path):
    (changed,) = arms(["aligned:strength=0.5"])
    plain, aligned = arms(["plain,aligned"])
    begin(tmp_path, drawer, FEW, methods=(plain, aligned.model_copy(update={"control": changed.control}))).run()
    found = compared(small[0], tmp_path)
    assert found.settings == ["the settings of aligned"]
    assert (found.items, found.same) == (4, 2)
    assert json.loads((tmp_path / "config.json").read_text())["arms"][1]["control"][0]["strength"] == 0.5
