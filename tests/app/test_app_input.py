"""What visitors hand in and ask for: limits, recipes, values of the style tab, sets of their own."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydantic import ValidationError
from served import framed, settings

from attnctrl import AlignedStyle, ControlError, Reference, SoftPAG
from attnctrl.app.web import look
from attnctrl.app.web.frame import sentence
from attnctrl.app.web.jobs import Job
from attnctrl.app.web.limits import Limits
from attnctrl.app.web.settings import NAMES, Settings
from attnctrl.app.web.store import Store
from attnctrl.app.web.tabs import evaluate, style_set
from attnctrl.pictures import DATA_URI
from attnctrl.pipelines.generate import write_set
from attnctrl.pipelines.recipe import PNG_KEY, Recipe

MODEL = "tiny-sd3"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def frame():
    """The app's frame, with one of the embedded models."""
    with framed([MODEL], items=4, letters=40) as found:
        yield found


@pytest.fixture
def store():
    """Three sessions of two results each."""
    found = Store(3, 2, 60)
    yield found
    found.close()


def set_values(text="a fox, comic\na key, comic", method="aligned", leads=style_set.BY_PROMPT, picture=None, **given):
    """What the style tab's components send."""
    return [leads, picture, None, "", text, method, 0.5, *settings(**given)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": ()}, "there is no prompt"),
        ({"prompts": ("a fox",) * 9}, "9 prompts; this server draws at most 8"),
        ({"prompts": ("a fox", "x" * 401)}, "a prompt of 401 letters"),
        ({"width": 129}, "at most 128 px"),
        ({"height": 130, "width": 16}, "at most 128 px"),
        ({"steps": 61}, "61 steps; this server takes 1 to 60"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_every_limit_says_what_is_too_much(given, says):
    usual = {"model": MODEL, "prompts": ("a fox",), "width": None, "height": None, "steps": None}
    Limits().check(**usual)
    with pytest.raises(ControlError, match=says):
        Limits().check(**(usual | given))


def test_limits_of_the_embedded_models_are_their_own():
    Limits().check("large", ("a fox",), 1024, 1024, 60)
    with pytest.raises(ControlError, match="1024 px"):
        Limits().check("large", ("a fox",), 1040, 16, 60)
    with pytest.raises(ValidationError):
        Limits(steps=0)


def test_a_negative_prompt_has_the_limit_of_a_prompt(frame):
    frame.engine.check(Recipe(prompts=("a fox",), negative_prompt="x" * 40))
    with pytest.raises(ControlError, match="41 letters"):
        frame.engine.check(Recipe(prompts=("a fox",), negative_prompt="x" * 41))


def test_only_the_models_that_the_operator_allows_are_loaded(frame):
    with pytest.raises(ControlError, match="does not offer the model"), frame.engine.pipe("tiny-flux"):
        pass
    with pytest.raises(ControlError, match="does not offer the model"):
        frame.engine.check(Recipe(model="/etc", prompts=("a fox",)))


def uri():
    return AlignedStyle(reference=Reference(picture=PICTURE)).model_dump(mode="json")["reference"]["picture"]


def aligned(reference):
    return {"model": MODEL, "prompts": ["a fox"], "control": [{"kind": "aligned", "reference": reference}]}


@pytest.mark.parametrize(
    "reference",
    [
        {"picture": "PATH"},
        [{"picture": "URI"}, {"picture": "PATH"}],
        {"picture": "URI", "mask": "PATH"},
        {"picture": ["PATH"]},
        {"picture": {"path": "PATH"}},
        {"picture": "data:../PATH"},
    ],
)
def test_recipes_with_pictures_by_path_are_refused(frame, tmp_path, reference):
    PICTURE.save(tmp_path / "secret.png")
    text = json.dumps(aligned(reference)).replace("PATH", str(tmp_path / "secret.png")).replace("URI", uri())
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ControlError, match="names a picture by its path"):
        frame.read(str(tmp_path / "recipe.json"))


def test_recipes_with_pictures_inside_are_read(frame, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(aligned([{"picture": uri()}, {"picture": uri()}])))
    found = frame.read(str(tmp_path / "recipe.json"))
    first = found.control[0].references()[0]
    assert first.picture.tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.json", b"{"),
        ("a.json", b"\xff\xfe\x00garbage"),
        ("a.json", b"[" * 100000),
        ("a.json", b""),
        ("a.png", b"no picture"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(30)),
    ],
)
def test_garbage_is_no_recipe(frame, tmp_path, name, body):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ControlError, match="this file is no recipe"):
        frame.read(str(tmp_path / name))


def test_a_png_whose_text_is_a_bomb_is_no_recipe(frame, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    PICTURE.save(tmp_path / "bomb.png", pnginfo=info)
    with pytest.raises(ControlError, match="no recipe"):
        frame.read(str(tmp_path / "bomb.png"))


def test_a_png_without_a_recipe_and_no_file_are_told_apart(frame, tmp_path):
    PICTURE.save(tmp_path / "plain.png")
    with pytest.raises(ControlError, match="this PNG carries no recipe"):
        frame.read(str(tmp_path / "plain.png"))
    with pytest.raises(ControlError, match="there is no file"):
        frame.read(None)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "tiny-flux"}, "does not offer the model 'tiny-flux'"),
        ({"model": "/etc/passwd"}, "does not offer"),
        ({"width": 4096, "height": 64}, "at most 128 px"),
        ({"num_inference_steps": 1000}, "1000 steps"),
        ({"prompts": ["a fox"] * 9}, "9 prompts"),
        ({"prompts": []}, "prompts:"),
        ({"seed": -1}, "seed:"),
        ({"unheard": 1}, "unheard:"),
    ],
)
def test_recipes_beyond_what_is_allowed_are_refused(frame, tmp_path, given, says):
    (tmp_path / "recipe.json").write_text(json.dumps({"model": MODEL, "prompts": ["a fox"], **given}))
    with pytest.raises((ControlError, ValidationError)) as fault:
        frame.read(str(tmp_path / "recipe.json"))
    assert says in sentence(fault.value)


def test_faults_become_sentences_without_a_traceback(capsys):
    assert sentence(ControlError("one\n  two")) == "one two"
    assert "Something went wrong here (KeyError)" in sentence(KeyError("/secret"))
    assert "/secret" not in sentence(KeyError("/secret"))
    assert "&lt;b&gt;" in look.said("<b>")
    assert "&lt;b&gt;" in look.note("<b>")
    capsys.readouterr()


def test_the_style_tab_restores_what_it_asked(frame, tmp_path):
    values = set_values("a fox, comic\na key, comic", size="64x48", blocks="2-3", guidance=3.0, negative="blur")
    _, recipe = style_set.asked(values)
    write_set(frame.engine.draw(Job(), recipe.model_copy(update={"width": 32, "height": 32}), "", 2), tmp_path / "made")
    for name in ("recipe.json", "00.png"):
        *found, said = style_set.restored(frame, str(tmp_path / "made" / name))
        assert "Restored." in said
        _, again = style_set.asked(found)
        assert again.control == recipe.control
        assert (again.prompts, again.seed, again.width) == (recipe.prompts, 3, 32)
        assert (again.num_inference_steps, again.guidance_scale) == (2, 3.0)


def test_a_recipe_with_a_picture_comes_back_with_it(frame, tmp_path):
    _, recipe = style_set.asked(set_values("a fox", leads=style_set.BY_PICTURE, picture=PICTURE))
    (tmp_path / "recipe.json").write_text(recipe.dump())
    leads, picture, *_ = style_set.restored(frame, str(tmp_path / "recipe.json"))
    assert leads == style_set.BY_PICTURE
    assert picture.tobytes() == PICTURE.tobytes()


def test_what_the_style_tab_cannot_show_is_said(frame, tmp_path):
    recipe = Recipe(prompts=("a fox",), control=(SoftPAG(where={"heads": "L2H0"}),))
    (tmp_path / "recipe.json").write_text(recipe.dump())
    assert "softpag" in style_set.restored(frame, str(tmp_path / "recipe.json"))[-1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text": " \n "}, "there is no prompt"),
        ({"text": "a fox"}, "one prompt has nothing to share"),
        ({"method": "freecus"}, "choose that a picture leads"),
        ({"leads": style_set.BY_PICTURE}, "there is none; drop one"),
        ({"size": "64 by 48"}, "64 by 48"),
    ],
)
def test_the_style_tab_says_what_is_missing(given, says):
    with pytest.raises(ControlError, match=says):
        style_set.asked(set_values(**given))


def test_one_side_of_a_size_comes_back_as_it_is():
    found = dict(zip(NAMES, Settings.restored(Recipe(prompts=("a",), width=64), {}), strict=True))
    assert found["size"] == "64"
    assert Settings.restored(Recipe(prompts=("a",)), {})[NAMES.index("size")] is None


def test_a_new_seed_is_drawn_only_if_wanted():
    assert Settings.read(settings(seed=5))[0]["seed"] == 5
    drawn = {Settings.read(settings(seed=5, fresh=True))[0]["seed"] for _ in range(4)}
    assert len(drawn) > 1


def test_the_plain_set_is_drawn_once_for_two_strengths(frame, store, monkeypatch):
    drawn, draw = [], type(frame.engine).draw

    def noted(self, job, recipe, doing, steps):
        drawn.append(doing)
        return draw(self, job, recipe, doing, steps)

    monkeypatch.setattr(type(frame.engine), "draw", noted)
    visit, values = store.of("a"), set_values(size="32")
    first = style_set.draw(frame, Job(), visit, values)
    values[6] = 1.0
    second = style_set.draw(frame, Job(), visit, values)
    assert drawn == ["Plain", "Aligned", "Aligned"]
    assert second.plain is first.plain
    assert second.aligned.recipe.made != first.aligned.recipe.made


SET = {"id": "one", "prompts": ["a fox", "a key"]}
GIVEN = {"model": MODEL, "seed": 0, "num_inference_steps": 2}


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "one", "prompts": ["a fox"], "reference": "PATH"}',
        '{"id": "one", "prompts": ["a fox"], "\\u0072eference": "PATH"}',
        '{"id": "one", "prompts": ["a fox"], "style": "data:", "reference": "PATH"}',
        '{"id": "one", "prompts": ["a fox"], "reference": ["PATH"]}',
    ],
)
def test_own_sets_with_references_by_path_are_refused(tmp_path, line):
    PICTURE.save(tmp_path / "secret.png")
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(SET | {"id": "zero"}) + "\n" + line.replace("PATH", str(tmp_path / "secret.png")))
    with pytest.raises(ControlError, match="line 2: give the reference inside the file"):
        evaluate.own_sets(str(own))


def test_own_sets_are_read_with_pictures_inside(tmp_path):
    PICTURE.save(tmp_path / "own.png")
    inside = DATA_URI + base64.b64encode((tmp_path / "own.png").read_bytes()).decode()
    (tmp_path / "own.jsonl").write_text(json.dumps(SET | {"reference": inside}))
    assert evaluate.own_sets(str(tmp_path / "own.jsonl"))[0].reference.size == (32, 32)


def test_faults_of_own_sets_name_the_file_and_not_its_folder(tmp_path):
    (tmp_path / "own.jsonl").write_text("no json")
    with pytest.raises(ControlError, match=r"^own\.jsonl, line 1") as fault:
        evaluate.own_sets(str(tmp_path / "own.jsonl"))
    assert str(tmp_path) not in str(fault.value)


@pytest.mark.parametrize(
    ("methods", "count", "given", "says"),
    [
        (["plain", "secret/recipe.json"], 2, {}, "files are for the command line"),
        (["made.png"], 2, {}, "files are for the command line"),
        (["aligned:reference=/etc/passwd"], 2, {}, "files are for the command line"),
        (['aligned:reference={"picture":"/etc/passwd"}'], 2, {}, "files are for the command line"),
        (["plain", "naive", "alignedgen"], 2, {}, "3 methods on 2 sets: 6 items; this server runs at most 4"),
        (["unheard"], 2, {}, "no method is called 'unheard'"),
        (["plain"], 0, {}, "0 were asked for"),
        (["plain"], 2, {"model": "tiny-flux"}, "does not offer"),
        (["plain"], 2, {"num_inference_steps": 99}, "99 steps"),
        (["plain"], 2, {"width": 256, "height": 16}, "at most 128 px"),
    ],
)
def test_evaluations_beyond_what_is_allowed_are_refused(frame, methods, count, given, says):
    with pytest.raises(ControlError, match=says):
        evaluate.prepared(frame, methods, (), None, count, GIVEN | given)


def test_an_evaluation_is_prepared_as_it_was_asked(frame):
    config, sets = evaluate.prepared(frame, ["plain", "alignedgen"], ["strength=0.5"], None, 2, GIVEN)
    assert [arm.name for arm in config.arms] == ["plain", "alignedgen strength=0.5"]
    assert (config.baseline, len(sets), config.num_inference_steps) == ("plain", 2, 2)
