"""The Heads tab without a browser: its map, objectives that visitors may name, presets, runs that go on, limits."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image
from pydantic import ValidationError
from served import framed, settings

from attnctrl import ControlError, SoftPAG
from attnctrl.app.web import head_work as tab
from attnctrl.app.web.head_grid import heads_in, map_of
from attnctrl.app.web.jobs import Cancelled, Job
from attnctrl.app.web.limits import Limits
from attnctrl.app.web.store import Store
from attnctrl.app.web.tabs import heads as ui
from attnctrl.embedded import model_folder
from attnctrl.evals.heads.atlas import GUIDED, PERTURBED, PLAIN, Atlas, AtlasConfig, Cell
from attnctrl.pipelines.generate import write_set
from attnctrl.pipelines.presets import read_preset


@pytest.fixture(scope="module")
def frame():
    """The app's frame, with the two embedded models."""
    with framed(pictures=100) as found:
        yield found


@pytest.fixture
def store():
    found = Store(4, 8, 60)
    yield found
    found.close()


@pytest.fixture
def visit(store):
    return store.of("a")


def values(heads="L2H0 L3H1", u=0.5, w=3.0, prompt="a fox, sticker", **more):
    """What the components send."""
    return [prompt, heads, u, w, *settings(**{"size": "32", **more})]


def search_values(prompts="a fox\na key", rounds=1, top_k=1, pictures=2, wanted="contrast", **more):
    return [wanted, prompts, rounds, top_k, pictures, *values(**more)]


class Stopped(Job):
    """A job that is cancelled after so many updates."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def tell(self, *given, **more):
        super().tell(*given, **more)
        self.after -= 1
        if self.after == 0:
            self.cancel()


def atlas_of(gains, model="tiny-sd3"):
    config = AtlasConfig(model=model, prompt="a fox", objectives=("contrast",))
    cells = {head: Cell({"contrast": 0.2 + gain}, {"contrast": 0.2}) for head, gain in gains.items()}
    return Atlas(config, Path(), {"contrast": 0.2}, cells, {}, {})


def test_map_has_the_models_blocks_and_an_atlas_gains():
    plain = map_of("tiny-flux", "L7H3 L0H1")
    assert [row["name"] for row in plain["rows"]] == [f"L{i}" for i in range(8)]
    assert [row["stream"] for row in plain["rows"]] == ["double"] * 2 + ["single"] * 6
    assert plain["rows"][2]["cells"][1] == {"at": "L2H1"}
    assert plain["chosen"] == ["L0H1", "L7H3"]
    assert plain["key"] is None
    atlas = atlas_of({(0, 0): 0.05, (0, 1): -0.025, (5, 3): 0.0})
    found = map_of("tiny-sd3", "", atlas, "contrast")
    assert found["rows"][0]["cells"][:2] == [
        {"at": "L0H0", "gain": "+0.0500", "share": 1.0},
        {"at": "L0H1", "gain": "−0.0250", "share": -0.5},
    ]
    assert found["rows"][5]["cells"][3] == {"at": "L5H3", "gain": "0.0000", "share": 0.0}
    assert found["rows"][1]["cells"][0] == {"at": "L1H0"}  # outside the atlas' blocks
    assert (found["key"]["low"], found["key"]["high"]) == ("−0.0500", "+0.0500")
    json.dumps(found)
    for other in (map_of("tiny-flux", "", atlas, "contrast"), map_of("tiny-sd3", "", atlas, "sharpness")):
        assert other["key"] is None  # another model's, or not scored


def test_map_of_a_model_that_is_not_here_yet_is_empty():
    assert map_of("nobody/nothing") == {"rows": [], "chosen": [], "key": None}
    assert heads_in("L2H0", "nobody/nothing") == []


def test_heads_that_are_typed():
    assert heads_in("L3H1, L2H0 L2H0", "tiny-sd3") == [(2, 0), (3, 1)]
    assert heads_in("H2", "tiny-sd3") == [(block, 2) for block in range(6)]
    assert len(heads_in("all", "tiny-flux")) == 32
    assert heads_in("  ", "tiny-sd3") == []
    with pytest.raises(ControlError, match="blocks 0-5"):
        heads_in("L9H0", "tiny-sd3")
    with pytest.raises(ControlError, match="heads 0-3"):
        heads_in("L0H7", "tiny-sd3")
    with pytest.raises(ValidationError, match="cannot read"):
        heads_in("L2H", "tiny-sd3")


@pytest.mark.parametrize(
    "text",
    ["like:/etc/passwd.png", "os:getcwd", "attnctrl.app.web.app:app", "clip", "clip:/models", "aesthetic:/x.pth",
     "text:a fox", "pickscore", "sum:0.5*contrast+like:/etc/a.png", "sum:(sum:os:getcwd)", "harmonic:contrast+os:getcwd",
     "sum: ( clip:/x ) + contrast", "", " : ", "sum:" + "+".join(["contrast"] * 20)],
)  # fmt: skip
def test_objectives_that_read_files_or_run_code_are_refused(text, frame, visit):
    with pytest.raises(ControlError):
        tab.allowed(text, "tiny-sd3")
    with pytest.raises(ControlError):
        tab.draw_atlas(frame, Job(), visit, [text, *values()])
    with pytest.raises(ControlError):
        tab.search(frame, Job(), visit, search_values(wanted=text))
    assert not list(visit.folder.iterdir())


def test_objectives_that_are_offered_are_allowed():
    assert all(tab.allowed(name, "tiny-flux") == name for name in tab.objectives("tiny-flux"))
    assert tab.allowed(" sum:0.7*color:blue+0.3*sharpness", "tiny-sd3") == "sum:0.7*color:blue+0.3*sharpness"
    assert "quality" not in tab.objectives("black-forest-labs/FLUX.1-dev")
    with pytest.raises(ControlError, match="quality"):
        tab.allowed("quality", "black-forest-labs/FLUX.1-dev")


def test_drawing_again_draws_only_what_changed(frame, visit, monkeypatch):
    drawn = []
    real = frame.engine.draw
    monkeypatch.setattr(
        type(frame.engine), "draw", lambda _, job, recipe, *rest: drawn.append(recipe) or real(job, recipe, *rest)
    )
    first = tab.draw(frame, Job(), visit, values())
    (guided,) = first[GUIDED].recipe.control
    assert (guided.where.heads, guided.u, guided.strength) == ("L2H0,L3H1", 0.5, 3.0)
    assert first[PERTURBED].recipe.control[0].strength == -1
    assert first[PLAIN].recipe.control == ()
    assert len({one.recipe.made[0].sha256 for one in first.values()}) == 3
    kinds = lambda: [len(one.control) and one.control[0].strength for one in drawn]  # noqa: E731
    assert kinds() == [0, -1, 3]
    drawn.clear()
    tab.draw(frame, Job(), visit, values(w=5.0))
    assert kinds() == [5]
    drawn.clear()
    tab.draw(frame, Job(), visit, values(u=1.0))
    assert kinds() == [-1, 3]
    for wrong, says in (({"heads": " "}, "no head"), ({"prompt": ""}, "no prompt"), ({"size": "4000"}, "at most 128")):
        with pytest.raises(ControlError, match=says):
            tab.draw(frame, Job(), visit, values(**wrong))


def test_a_search_that_was_cancelled_goes_on(frame, store, monkeypatch):
    visit, other = store.of("a"), store.of("b")
    with pytest.raises(Cancelled):
        tab.search(frame, Stopped(2), visit, search_values(blocks="4-5"))
    (folder,) = visit.folder.glob("heads-*/run")
    begun = len((folder / "results-0.jsonl").read_text().splitlines())
    assert begun > 0
    fresh = []
    real = tab.Search._draw

    def draw(self, shots, progress):
        before = self.ledger.lines()
        real(self, shots, progress)
        fresh.append(self.ledger.lines() - before)

    monkeypatch.setattr(tab.Search, "_draw", draw)
    heads, says = tab.search(
        frame, Job(), visit, search_values(blocks="4-5", fresh=True)
    )  # a search keeps the seed that is shown
    whole = len((folder / "results-0.jsonl").read_text().splitlines())
    assert sum(fresh) == whole - begun > 0
    assert says.startswith(f"{heads}: contrast +")
    assert len(heads_in(heads, "tiny-sd3")) == 1
    with pytest.raises(Cancelled):
        tab.search(frame, Stopped(2), other, search_values(blocks="4-5"))
    assert len(list(other.folder.glob("heads-*/run"))) == 1  # another visitor has a folder of their own
    assert len(list(visit.folder.glob("heads-*/run"))) == 1


def test_the_count_before_a_search_is_the_searchs_own(frame, visit):
    config = tab.search_of(frame, search_values(rounds=2, top_k=3, pictures=3))
    assert config.seeds == (3, 4)
    with tab.hunting(
        frame, visit, tab.search_of(frame, search_values(rounds=2, top_k=3, pictures=1, prompts="a fox"))
    ) as hunt:
        assert tab.count(hunt.config, len(hunt.heads)) == hunt.expected() == 1 + 24 + 21
    says = tab.expect(frame, Job(), visit, search_values(pictures=2))
    assert "24 heads" in says
    assert "50 pictures, about" in says


@pytest.mark.parametrize(
    "more", [{"guidance": 2.0}, {"true_cfg": 2.0}, {"negative": "blur"}, {"at_steps": "0-1"}], ids=lambda one: str(*one)
)
def test_what_atlas_and_search_do_not_take_is_refused(frame, visit, more):
    with pytest.raises(ControlError, match="the atlas and the search use the model's own guidance at all steps"):
        tab.search_of(frame, search_values(**more))
    with pytest.raises(ControlError, match="under Advanced, empty"):
        tab.draw_atlas(frame, Job(), visit, ["contrast", *values(**more)])


def test_more_than_the_server_draws_is_refused(frame, visit, monkeypatch):
    with pytest.raises(ControlError, match=r"140 pictures; this server draws at most 100"):
        tab.search(frame, Job(), visit, search_values(rounds=3, pictures=2))
    for wrong, says in (
        ({"prompts": "\n".join("abcdefghi")}, "9 prompts"), ({"steps": 400}, "400 steps"), ({"prompts": " "}, "no prompt"),
        ({"w": -1.0}, "above 0"), ({"model": "/srv/model"}, "does not offer"),
    ):  # fmt: skip
        with pytest.raises(ControlError, match=says):
            tab.search(frame, Job(), visit, search_values(**wrong))
    monkeypatch.setattr(frame.engine, "limits", Limits(pictures=40))
    with pytest.raises(ControlError, match="49 pictures"):
        tab.draw_atlas(frame, Job(), visit, ["contrast", *values()])
    assert not list(visit.folder.glob("*/run"))


def test_atlas_is_kept_and_scored_for_another_objective_without_drawing(frame, visit, monkeypatch):
    with pytest.raises(Cancelled):
        tab.draw_atlas(frame, Stopped(3), visit, ["contrast", *values(blocks="4-5")])
    first = tab.draw_atlas(frame, Job(), visit, ["contrast", *values(blocks="4-5")])
    assert visit.result(tab.ATLAS) is first
    assert "contrast" in (first.folder / "atlas.html").read_text()
    monkeypatch.setattr(tab.AtlasRun, "_drawn", None)  # nothing is drawn again
    again = tab.draw_atlas(frame, Job(), visit, ["color:pink", *values(blocks="4-5")])
    assert again.folder == first.folder
    head = (4, 1)
    own = tab.objective("color:pink")
    pictures = [Image.open(again.picture(kind, h)) for kind, h in ((GUIDED, head), (PERTURBED, head), (PLAIN, None))]
    expected = own(pictures, ["a"] * 3)
    assert [
        again.cells[head].guided["color:pink"],
        again.cells[head].perturbed["color:pink"],
        again.plain["color:pink"],
    ] == expected
    shown = map_of("tiny-sd3", "", again, "color:pink")
    assert shown["rows"][4]["cells"][1]["gain"]
    assert "gain" not in shown["rows"][0]["cells"][0]


def test_presets_round_trip(frame, visit, tmp_path):
    path = tab.saved(frame, visit, "my set/../x", values("H1", u=0.7, w=2.0, blocks="2-3"))
    assert Path(path).name == "my-set-x.json"
    assert Path(path).parent.parent == visit.folder
    assert (read_preset(path).status, read_preset(path).source) == ("unmeasured", "app")
    preset, says = tab.loaded(frame, path, "tiny-sd3")
    assert (preset.heads, preset.u, preset.strength) == ("L2H1,L3H1", 0.7, 2.0)
    assert "unmeasured" in says
    with pytest.raises(ControlError, match="is for tiny-sd3"):
        tab.loaded(frame, path, "tiny-flux")
    broken = tmp_path / "broken.json"
    for text in (
        "{",
        "{}",
        Path(path).read_text().replace('"u": 0.7', '"u": 7'),
        Path(path).read_text().replace("L2H1", "L2"),
    ):
        broken.write_text(text)
        with pytest.raises((ControlError, ValidationError)):
            tab.loaded(frame, str(broken), "tiny-sd3")
    for name in (None, "", "nowhere", str(tmp_path)):
        with pytest.raises(ControlError) as fault:
            tab.loaded(frame, name, "tiny-sd3")
        assert str(tmp_path) not in str(fault.value)
    with pytest.raises(ValidationError):
        tab.saved(frame, visit, "x", values(w=-1.0))


def test_shipped_presets_are_those_that_fit(frame):
    names = tab.fitting("tiny-sd3")
    assert "tiny-sd3-contrast" in names
    assert all(name.startswith("tiny-sd3") for name in names)
    assert tab.fitting(str(model_folder("tiny-sd3"))) == []  # of that shape, with weights that are not known
    for name in names:
        assert tab.loaded(frame, name, "tiny-sd3")[0].heads
    with pytest.raises(ControlError, match="is for"):
        tab.loaded(frame, "flux-green", "tiny-flux")


def test_restoring_gives_back_what_made_a_picture(frame, visit, tmp_path):
    found = tab.draw(frame, Job(), visit, values(w=4.0, steps=3, at_steps="0%-50%"))
    write_set(found[GUIDED], tmp_path / "guided")
    write_set(found[PLAIN], tmp_path / "plain")
    *back, says = tab.restored(frame, str(tmp_path / "guided" / "00.png"))
    assert back[:4] == ["a fox, sticker", "L2H0 L3H1", 0.5, 4.0]
    assert "Restored." in says
    again = tab.draw(frame, Job(), visit, back)
    assert again[GUIDED].recipe.made == found[GUIDED].recipe.made
    with pytest.raises(ControlError, match="no guidance by heads"):
        tab.restored(frame, str(tmp_path / "plain" / "recipe.json"))
    recipe = found[GUIDED].recipe.model_copy(
        update={"prompts": ("a", "b"), "control": (SoftPAG(where={"heads": "L1H1 L2H2"}, u=(0.2, 0.6), strength=20, target="uniform"),)}
    )  # fmt: skip
    (tmp_path / "other.json").write_text(recipe.dump())
    prompt, heads, u, w, *_, says = tab.restored(frame, str(tmp_path / "other.json"))
    assert (prompt, heads, u, w) == ("a", "L1H1 L2H2", 0.6, tab.LARGEST_W)
    assert all(part in says for part in ("1 more prompts", "target uniform", "a u for each head", "w 20"))


def test_errors_become_sentences(frame):
    def fails(visit, text):
        raise ControlError(f"no {text}")

    *left, says = ui._safely(frame, fails, 2)(None, "way")
    assert left == [gr.skip(), gr.skip()]
    assert "no way" in says
    assert "Not done" in says
