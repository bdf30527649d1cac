"""Runs of edits: every method on every edit, resumed, reported; pictures replayed without inversion."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from runs import begin, noise, pictures
from tiny import tiny_flux, tiny_sd3

from attnctrl import ConsistEdit, ControlError, Region, controlled, edit, open_source
from attnctrl.evals.edits.drawing import EditTask, with_threshold
from attnctrl.evals.edits.replay import latent_of, replayed
from attnctrl.evals.edits.sets import EditCase
from attnctrl.evals.metrics.kinds import EDITS, metrics
from attnctrl.evals.runs.arms import arms
from attnctrl.evals.runs.config import seed_of
from attnctrl.evals.runs.finished import read_run
from attnctrl.evals.runs.report import write_report
from attnctrl.evals.runs.run import Run

BOX = Region(box=(0, 0, 0.5, 1))
CASES = (
    EditCase(id="hat", kind="change color", source="a red hat", target="a blue hat", region=BOX, seed=5),
    EditCase(id="ink", kind="change style", source="a fox", target="a fox in ink"),
    EditCase(id="cat", kind="add", source="a fox", target="a fox and a cat", region=BOX, picture=noise(40)[0]),
    EditCase(id="key", kind="change object", source="a red key", target="a red bell", region="key", width=48),
)
METHODS = ("plain,inpaint,consistedit,copy",)


def run_of(folder, pipe, methods=METHODS, cases=CASES, sweeps=(), **more):
    found = arms(methods, sweeps, edits=True)
    given = {"arms": found, "baseline": found[0].name, "kind": "edit", "metrics": EDITS, **more}
    from runs import settings

    return Run(pipe, settings(found, **given), cases, metrics(EDITS, of="edit"), folder, EditTask(pipe, None))


@pytest.fixture(scope="module")
def pipe():
    stock = tiny_sd3()
    own = controlled(type(stock))(**stock.components)
    own.set_progress_bar_config(disable=True)
    return own


@pytest.fixture(scope="module")
def done(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits") / "run"
    rows = run_of(folder, pipe).run()
    return folder, rows


def test_every_edit_is_drawn_by_every_method(done):
    folder, rows = done
    assert not [row.failed for row in rows.values() if row.failed]
    assert len(rows) == 16
    assert {row.seed for row in rows.values() if row.set == "hat"} == {5}
    assert rows["plain", "ink"].seed == seed_of(0, "ink")
    run = read_run(folder)
    assert run.sets["hat"] == CASES[0]
    assert run.pictures(run.config.arms[0], "key")[0].size == (48, 32)
    for one in ("hat", "cat", "key"):
        assert set(run.beside(run.config.arms[2], one)) == {"source", "region", "mask"}
        assert len({row.beside[f"sources/{one}-source.png"] for row in rows.values() if row.set == one}) == 1
    assert set(run.beside(run.config.arms[0], "ink")) == {"source"}
    assert len(list((folder / "sources").iterdir())) == 4, "a source once"


def test_what_methods_change_is_measured(done):
    _, rows = done
    for one in ("hat", "cat"):
        plain, inpaint, consist, copy = (rows[name, one].values for name in ("plain", "inpaint", "consistedit", "copy"))
        assert copy["background-psnr"] == 60
        assert copy["untaken"] == 1
        assert copy["canny-ssim"] == 1
        assert plain["untaken"] == 0
        assert inpaint["background-psnr"] > plain["background-psnr"] + 1, "a random decoder sees far"
        assert consist["background-psnr"] != plain["background-psnr"]
    assert rows["plain", "ink"].values["background-psnr"] is None, "everything was to change"
    assert rows["plain", "ink"].pictures != rows["consistedit", "ink"].pictures
    assert {row.values["edit-success"] for row in rows.values()} == {None}, "there is no jury"


def test_an_edit_of_a_run_is_the_edit(done, pipe):
    folder, rows = done
    call = {"num_inference_steps": 2, "height": 32, "width": 32}
    opened = open_source(pipe, "a red hat", seed=5, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = edit(pipe, opened, "a blue hat", ConsistEdit(), region=BOX)
        kept = edit(pipe, opened, "a blue hat", region=BOX, keep=True, compare=one.plain)
    run = read_run(folder)
    plain, inpaint, consist, copy = (run.pictures(arm, "hat")[0].tobytes() for arm in run.config.arms)
    assert consist == one.image.tobytes()
    assert plain == one.plain.tobytes()
    assert inpaint == kept.image.tobytes()
    assert copy == opened.image.tobytes()
    assert rows["consistedit", "hat"].values["untaken"] == float(not one.took)
    said = json.loads(Image.open(folder / "pictures/consistedit/hat-0.png").info["attnctrl"])
    assert (said["prompt"], said["seed"], said["num_inference_steps"]) == ("a red hat", 5, 2)
    assert said["edits"][0]["prompt"] == "a blue hat"
    assert said["edits"][0]["control"][0]["kind"] == "consistedit"


def test_a_run_goes_on_where_it_was_stopped(done, pipe, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "run")
    before = pictures(folder)
    lines = (folder / "results-0.jsonl").read_text().splitlines()
    (folder / "results-0.jsonl").write_text("\n".join(lines[:-5]) + "\n")
    (folder / "sources" / "hat-source.png").write_bytes(b"torn")
    run = run_of(folder, pipe)
    again = run.run()
    assert "sources/hat-source.png" in run.redrawn
    assert pictures(folder) == before
    assert {key: row.values for key, row in again.items()} == {key: row.values for key, row in done[1].items()}


def test_a_report_of_edits(done):
    folder, _ = done
    names = {path.name for path in write_report(folder)}
    assert "sheet.png" in names
    sheet = Image.open(folder / "sheet.png")
    assert sheet.width > 7 * 192, "source, region, mask and four methods"
    table = (folder / "table.md").read_text()
    assert "untaken ↓ by kind of edit:" in table
    assert "| method | change color | change style | add | change object |" in table
    assert (folder / "items.csv").read_text().startswith("method,edit,kind,seed,")
    page = (folder / "report.html").read_text()
    assert "<title>Edits: 4 methods on 4 edits" in page
    assert "By kind of edit" in page
    assert "change color: a red hat" in page
    assert "built-in method" not in page
    assert " of prompts" not in page
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["parts"]["untaken"]["add"]["copy"]["mean"] == 1


# what is refused


def test_words_and_sizes_are_looked_at_before_anything_is_drawn(pipe, tmp_path):
    long = EditCase(id="far", kind="add", source=f"{'a b c d e ' * 60} fox", target="x", region="fox")
    with pytest.raises(ControlError, match=r"the edit 'far': .*fox"):
        run_of(tmp_path / "a", pipe, cases=[long])
    with pytest.raises(ControlError, match="the edit 'hat': width 60 is no multiple"):
        run_of(tmp_path / "b", pipe, cases=[CASES[0].model_copy(update={"width": 60})])


def test_methods_of_sets_and_of_edits_are_told_apart(pipe, tmp_path):
    with pytest.raises(ControlError, match=r"aligned draws sets .* attnctrl eval style"):
        run_of(tmp_path / "a", pipe, methods=("plain,aligned",))
    with pytest.raises(ControlError, match=r"consistedit edits pictures.* attnctrl eval edit"):
        begin(tmp_path / "b", pipe, methods=("plain,consistedit",))
    assert not (tmp_path / "b").exists()


# arms


def test_settings_of_edits_are_swept():
    found = arms(["plain,inpaint,consistedit"], ["threshold=0.1,0.5"], edits=True)
    names = [arm.name for arm in found]
    assert names == [
        "plain", "inpaint threshold=0.1", "inpaint threshold=0.5", "consistedit threshold=0.1",
        "consistedit threshold=0.5",
    ]  # fmt: skip
    assert [arm.edits.threshold for arm in found] == [None, 0.1, 0.5, 0.1, 0.5]
    assert [arm.edits.keep for arm in found] == [False, True, True, False, False]
    (every,) = arms(["consistedit:region=everywhere;alpha=0.5"], edits=True)
    assert (every.edits.region, every.control[0].alpha) == ("everywhere", 0.5)
    every = [arm.name for arm in arms(["editing"], edits=True)]
    assert every[:2] == ["plain", "inpaint"]
    assert "consistedit" in every
    assert "drag" not in every, "it has no place to go by itself"
    with pytest.raises(ControlError, match="no method is called 'inpaint'"):
        arms(["inpaint"])


def test_a_threshold_is_of_all_words_of_a_region():
    region = Region(box=(0, 0, 1, 1)) - (Region(words="fox") | Region(words="key", threshold=0.9))
    changed = with_threshold(region, 0.1)
    assert [part.threshold for part in changed.parts[1].parts] == [0.1, 0.1]
    assert changed.parts[0] == region.parts[0]


def test_regions_of_an_arm(pipe, tmp_path):
    methods = ("consistedit,consistedit:region=everywhere,consistedit:region=judged",)
    rows = run_of(tmp_path / "run", pipe, methods, CASES[:1]).run()
    own, everywhere, judged = (
        rows[name, "hat"] for name in ("consistedit", *(f"consistedit region={r}" for r in ("everywhere", "judged")))
    )
    assert "pictures/consistedit-region-everywhere/hat-region.png" not in everywhere.beside
    assert list(own.pictures.values()) != list(everywhere.pictures.values())
    assert own.values == judged.values, "without a truth the set's own"


# pictures opened without inversion


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_a_replayed_picture_is_noised_to_every_level(make):
    stock = make()
    own = controlled(type(stock))(**stock.components)
    own.set_progress_bar_config(disable=True)
    picture, call = noise(64)[0], {"num_inference_steps": 3, "height": 32, "width": 48}
    opened = replayed(own, picture, "a fox", 1, **call)
    assert opened.image.size == (48, 32)
    sigmas, clean = own.scheduler.sigmas, latent_of(own, picture, 32, 48)
    noised = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert len(opened.source.latents) == 4
    assert sigmas[0] == pytest.approx(1)
    for sigma, latent in zip(sigmas, opened.source.latents, strict=True):
        assert latent.numpy() == pytest.approx(((1 - sigma) * clean + sigma * noised)[0].numpy(), abs=1e-5)
    assert np.ptp(opened.source.map("fox").numpy()) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = edit(own, opened, "a key", region=BOX, keep=True, compare=False)
    left = kept.source.latents[-1].numpy() - opened.source.latents[-1].numpy()
    assert np.abs(left).max() > 0.01, "the region changes"
    assert (np.abs(left) < 1e-6).mean() > 0.4, "and nothing else"
