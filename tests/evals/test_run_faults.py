"""Runs whose items fail, and folders that are not theirs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from run_fixtures import FEW, as_drawn
from runs import (
    SETS,
    Light,
    Picky,
    Spread,
    begin,
    counted,
    ended,
    forked,
    result,
    tiny_pipe,
)  # fmt: skip

from attnctrl import ControlError
from attnctrl.evals.runs.finished import read_run
from attnctrl.evals.runs.report import items_csv
from attnctrl.evals.runs.summary import costs, summarise
from attnctrl.pipelines.generate import generate


def test_an_item_that_fails_is_a_row_and_tried_again(drawer, whole, tmp_path):
    odd = SETS[1]
    rows = begin(tmp_path, drawer, measures=[Picky(odd.prompts[0], ValueError("no\n light")), Spread()]).run()
    assert {key for key, row in rows.items() if row.failed} == {("plain", odd.id), ("aligned", odd.id)}
    assert rows["plain", odd.id].failed == "ValueError: no light"
    run = read_run(tmp_path)
    found = summarise(run)
    assert [(one.failed, one.missing) for one in found.arms] == [(1, 0), (1, 0)]
    for one in found.arms:
        values = [Light()(as_drawn(pictures=run.pictures(one.arm, s.id))) for s in SETS if s is not odd]
        assert one.means["lite-style"].sets == len(SETS) - 1
        assert one.means["lite-style"].mean == pytest.approx(np.mean(values))
    assert items_csv(run).count("ValueError: no light") == 2
    assert {run.row(arm, odd.id) for arm in run.config.arms} == {None}
    assert [one.seconds.sets for one in costs(run).values()] == [len(SETS) - 1] * 2
    for _ in range(2):
        with counted() as drawn:
            begin(tmp_path, drawer, measures=[Picky(odd.prompts[0], ControlError("still not")), Spread()]).run()
        assert drawn == [odd.prompts] * 2
    assert len(read_run(tmp_path).rows) == len(SETS) * 2
    with counted() as drawn:
        rows = begin(tmp_path, drawer).run()
    assert drawn == [odd.prompts] * 2
    assert not any(row.failed for row in rows.values())
    assert result(tmp_path) == whole[1]


def test_a_control_that_fails_leaves_the_others(drawer, small, tmp_path, monkeypatch):
    from attnctrl.evals.runs import tasks

    def broken(drawer, recipe, *more):
        if recipe.control and recipe.prompts == FEW[0].prompts:
            raise ControlError("this control cannot")
        return generate(drawer, recipe, *more)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "generate", broken)
        rows = begin(tmp_path, drawer, FEW).run()
    assert {key: row.failed for key, row in rows.items() if row.failed} == {("aligned", "ink-1"): "this control cannot"}
    found = summarise(read_run(tmp_path))
    assert [found.of(name).failed for name in ("plain", "aligned")] == [0, 1]
    assert found.of("aligned").differences["lite-style"].sets == 1
    begin(tmp_path, drawer, FEW).run()
    assert result(tmp_path) == small[1]


def test_a_failure_in_another_processes_file_does_not_come_back(drawer, small, tmp_path):
    broken = [Picky(FEW[1].prompts[0], ValueError("no light")), Spread()]
    rows = begin(tmp_path, drawer, FEW, broken, rank=1, of=2).run()
    assert all(row.failed for row in rows.values())
    rows = begin(tmp_path, drawer, FEW).run()
    assert not any(row.failed for row in rows.values())
    assert "failed" in (tmp_path / "results-1.jsonl").read_text()
    assert result(tmp_path) == small[1]
    (tmp_path / "pictures" / "plain" / "ink-2-0.png").unlink()
    begin(tmp_path, drawer, FEW, broken).run()
    assert read_run(tmp_path).failed == [], "what was good stays, and its picture is drawn again"


def test_ctrl_c_is_no_failure_of_an_item(drawer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, drawer, FEW, [Picky(FEW[1].prompts[0], KeyboardInterrupt()), Spread()]).run()
    assert not any(row.failed for row in read_run(tmp_path).rows.values())


def test_what_had_no_effect_is_told(drawer, tmp_path):
    rows = begin(tmp_path, drawer, FEW[:1], methods=("plain,softpag:heads=L2H0;u=1e-9",)).run()
    assert rows["plain", "ink-1"].warned is None
    guided = next(row for key, row in rows.items() if key[0] != "plain")
    assert guided.warned
    assert guided.warned in items_csv(read_run(tmp_path))


def test_steps_that_never_come_are_refused_before_anything_is_drawn(drawer, tmp_path):
    with pytest.raises(
        ControlError, match="aligned steps=90-99: aligned acts at steps 90-99, and this run has steps 0-1"
    ):
        begin(tmp_path / "none", drawer, FEW[:1], methods=("plain,aligned:steps=90-99",))
    assert not (tmp_path / "none").exists()


def test_two_runs_do_not_write_into_one_folder(drawer, small, copied):
    (copied / "pictures" / "plain" / "ink-1-0.png").unlink()
    one, other = begin(copied, drawer, FEW), begin(copied, drawer, FEW)
    with one.ledger.writing(), counted() as drawn, pytest.raises(ControlError, match="another process is writing to"):
        other.run()
    assert not drawn
    other.run()
    assert result(copied) == small[1]


def test_two_processes_do_not_write_into_one_folder(drawer, copied, tmp_path):
    (copied / "pictures" / "plain" / "ink-1-0.png").unlink()
    with begin(copied, drawer, FEW).ledger.writing():
        assert ended(forked(lambda: begin(copied, drawer, FEW).run(), tmp_path / "said")) == 70
    assert "another process is writing to" in (tmp_path / "said").read_text()
    assert ended(forked(lambda: begin(copied, drawer, FEW).run())) == 0


OTHER = {
    "seed": {"seed": 1},
    "num_inference_steps": {"num_inference_steps": 3},
    "height, width": {"height": 64, "width": 64},
    "arms": {"methods": ("plain,aligned:strength=0.5",)},
    "baseline": {"baseline": "aligned"},
    "metrics": {"metrics": ("lite-style",)},
    "batch_size": {"batch_size": 2},
    "sets_digest": {"sets": (FEW[0], FEW[1].model_copy(update={"prompts": ("a fox, ink", "a saw, ink")}))},
}


@pytest.mark.parametrize("named", OTHER)
def test_another_run_is_refused_and_what_differs_named(drawer, small, named):
    before = {path: path.stat().st_mtime_ns for path in small[0].rglob("*")}
    with pytest.raises(ControlError, match=rf"was begun with another {named}; give a new --out, or the same settings"):
        begin(small[0], drawer, **{"sets": FEW, **OTHER[named]})
    assert before == {path: path.stat().st_mtime_ns for path in small[0].rglob("*")}


def test_other_weights_and_threads_are_refused(drawer, small):
    other = tiny_pipe()
    other.transformer.proj_out.weight.data.add_(1)
    with pytest.raises(ControlError, match="begun with another weights"):
        begin(small[0], other, FEW)
    try:
        with pytest.raises(ControlError, match="begun with another threads, environment"):
            begin(small[0], drawer, FEW, threads=2)
    finally:
        begin(small[0], drawer, FEW)  # sets the threads back


def test_a_folder_with_other_files_is_refused(drawer, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ControlError, match="holds other files; give a new folder"):
        begin(tmp_path, drawer, FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ControlError, match="cannot write to"):
        begin(tmp_path / "thesis.txt", drawer, FEW)


def test_what_is_no_run_is_told(copied, tmp_path):
    with pytest.raises(ControlError, match=r"holds no run: config\.json is missing"):
        read_run(tmp_path / "none")
    sets, text = copied / "sets.jsonl", (copied / "sets.jsonl").read_text()
    sets.write_text(text.replace("a fox", "a fix"))
    with pytest.raises(ControlError, match=r"sets\.jsonl is not what the run began with"):
        read_run(copied)
    sets.unlink()
    with pytest.raises(ControlError, match="has drawn nothing yet"):
        read_run(copied)
    sets.write_text(text)
    (copied / "config.json").write_text('{"objectives": []}')
    with pytest.raises(ControlError, match="holds no run of attnctrl eval"):
        read_run(copied)


def test_an_unfinished_run_can_be_read(drawer, whole, tmp_path):
    begin(tmp_path, drawer, rank=1, of=2).run()
    with pytest.raises(ControlError, match="has drawn nothing yet"):
        read_run(tmp_path)
    shutil.copy(whole[0] / "sets.jsonl", tmp_path)
    run = read_run(tmp_path)
    assert run.missing == len(SETS)
    plain = run.config.arms[0]
    assert run.row(plain, "ink-1") is None
    assert run.pictures(plain, "ink-1") == []
    assert [one.missing for one in summarise(run).arms] == [2, 2]
    assert np.isnan(run.values(plain, "lite-style")).tolist() == [True, False, True, False]
