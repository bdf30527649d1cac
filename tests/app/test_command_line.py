"""The command line on tiny-flux: what it writes, exact replay, and one sentence for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from attnctrl import ControlError, Recipe, read_recipe
from attnctrl.app.cli import main
from attnctrl.pipelines.generate import PictureSet, batches, new_folder, pixel_hash, sheet_row

FAST = ["--steps", "2", "--device", "cpu", "--model", "tiny-flux"]


def call(monkeypatch, *words: str) -> int:
    """The exit code of `attnctrl WORDS`."""
    monkeypatch.setattr(sys, "argv", ["attnctrl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return 0 if code is None else int(code)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A set of three, made once."""
    folder = tmp_path_factory.mktemp("made") / "set"
    words = ["generate", "a fox, comic", "a car, comic", "a key, comic", *FAST, "--seed", "5", "--size", "80x48"]
    subprocess.run([sys.executable, "-m", "attnctrl", *words, "--out", str(folder)], check=True)
    return folder


def test_generate_writes_pictures_sheet_and_recipe(made):
    assert sorted(p.name for p in made.iterdir()) == ["00.png", "01.png", "02.png", "recipe.json", "sheet.png"]
    recipe = read_recipe(made / "recipe.json")
    assert recipe.control[0].kind == "aligned"
    assert recipe.max_sequence_length == 24
    assert recipe.true_cfg_scale is not None, "the model's own settings are written out"
    for entry in recipe.made:
        with Image.open(made / entry.file) as picture:
            assert picture.size == (80, 48)
            assert pixel_hash(picture) == entry.sha256
        assert read_recipe(made / entry.file) == recipe
    with Image.open(made / "sheet.png") as sheet:
        assert min(sheet.size) > 200


@pytest.mark.parametrize("source", ["recipe.json", "01.png"])
def test_run_replays_bit_for_bit(made, source, monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, "run", str(made / source), "--out", str(tmp_path / "again")) == 0
    assert "3 of 3 pictures are identical" in capsys.readouterr().out
    for name in ("00.png", "01.png", "02.png"):
        with Image.open(made / name) as a, Image.open(tmp_path / "again" / name) as b:
            assert ImageChops.difference(a, b).getbbox() is None


def test_run_says_when_pictures_differ(made, monkeypatch, tmp_path, capsys):
    body = json.loads((made / "recipe.json").read_text())
    body["seed"] = 6
    (tmp_path / "changed.json").write_text(json.dumps(body))
    assert call(monkeypatch, "run", str(tmp_path / "changed.json"), "--out", str(tmp_path / "again")) == 0
    assert "0 of 3 pictures are identical" in capsys.readouterr().out


def test_picture_reference_travels_in_the_recipe(monkeypatch, tmp_path, capsys):
    picture = tmp_path / "ref.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    words = [
        "generate",
        "a fox",
        *FAST,
        "--reference",
        str(picture),
        "--caption",
        "a wall",
        "--out",
        str(tmp_path / "a"),
    ]
    assert call(monkeypatch, *words) == 0
    picture.unlink()
    assert call(monkeypatch, "run", str(tmp_path / "a" / "00.png"), "--out", str(tmp_path / "b")) == 0
    assert "1 of 1 pictures are identical" in capsys.readouterr().out


def test_more_prompts_than_a_batch_follow_one_reference(monkeypatch, tmp_path):
    words = ["generate", *[f"a {n}, sticker" for n in ("fox", "cat", "car", "key", "bell")], *FAST]
    assert call(monkeypatch, *words, "--batch-size", "3", "--out", str(tmp_path / "split")) == 0
    assert call(monkeypatch, *words, "--out", str(tmp_path / "whole")) == 0
    for i in range(5):
        with Image.open(tmp_path / "split" / f"{i:02d}.png") as a, Image.open(tmp_path / "whole" / f"{i:02d}.png") as b:
            assert max(high for _, high in ImageChops.difference(a, b).getextrema()) <= 1


def test_every_picture_has_its_own_seed(monkeypatch, tmp_path):
    words = ["generate", "a fox", "a fox", *FAST, "--style", "plain", "--seed", "3", "--out", str(tmp_path / "a")]
    assert call(monkeypatch, *words) == 0
    assert [entry.seed for entry in read_recipe(tmp_path / "a" / "recipe.json").made] == [3, 4]
    with Image.open(tmp_path / "a" / "00.png") as first, Image.open(tmp_path / "a" / "01.png") as second:
        assert ImageChops.difference(first, second).getbbox() is not None


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    folder = new_folder(tmp_path / "set")
    (folder.__enter__() / "00.png").write_bytes(b"half")
    folder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not list(tmp_path.iterdir())


def test_the_sheet_frames_what_leads():
    def framed(*control: dict) -> frozenset[int]:
        recipe = Recipe.model_validate({"prompts": ["a", "b"], "control": control})
        return sheet_row(PictureSet((Image.new("RGB", (8, 8)),) * 2, recipe)).marked

    assert framed({"kind": "aligned"}) == {0}
    assert framed() == framed({"kind": "softpag"}) == framed({"kind": "aligned", "strength": 0}) == frozenset()


def test_batches():
    assert batches(5, 3, True) == [[0, 1, 2], [0, 3, 4]]
    assert batches(5, 3, False) == [[0, 1, 2], [3, 4]]
    assert batches(1, 3, True) == [[0]]


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> str:
    Image.new(mode, size).save(path)
    return str(path)


BAD = {
    "one prompt": (lambda t: ["generate", "a fox"], "one prompt has nothing to share"),
    "no prompt": (lambda t: ["generate"], "Missing argument"),
    "unknown style": (lambda t: ["generate", "a", "b", "--style", "alinged"], "choose aligned, freecus, naive, stylealigned, aligned-gentle, plain"),
    "unknown model": (lambda t: ["generate", "a", "b", "--model", "tiny-flax"], "there is no model 'tiny-flax'"),
    "a folder that is no model": (lambda t: ["generate", "a", "b", "--model", str(t)], "model_index.json is missing"),
    "another model's folder": (lambda t: ["generate", "a", "b", "--model", other(t)], "StableDiffusionPipeline has no FluxTransformer2DModel"),
    "a broken model": (lambda t: ["generate", "a", "b", "--model", other(t, "FluxPipeline")], "cannot load the model"),
    "a subject without a picture": (lambda t: ["generate", "a", "--style", "freecus"], "add --reference"),
    "a mask of another size": (lambda t: ["generate", "a", "--reference", picture(t / "x.png", (9, 9)), "--mask", picture(t / "m.png", (8, 9))], "mask of the picture's size"),
    "a mask without a picture": (lambda t: ["generate", "a", "b", "--mask", picture(t / "m.png", (8, 9))], "--mask says something"),
    "two captions for one picture": (lambda t: ["generate", "a", "--reference", picture(t / "x.png", (9, 9)), "--caption", "a", "--caption", "b"], "2 times for 1"),
    "no such picture": (lambda t: ["generate", "a", "--reference", str(t / "no.png")], "there is no picture at"),
    "a folder as picture": (lambda t: ["generate", "a", "--reference", str(t)], "is a folder"),
    "a text as picture": (lambda t: ["generate", "a", "--reference", text(t / "x.png")], "as a picture"),
    "a torn picture": (lambda t: ["generate", "a", "--reference", torn(t / "x.png")], "as a picture"),
    "a tiny picture": (lambda t: ["generate", "a", "--reference", picture(t / "x.png", (4, 90))], "at least 8 px"),
    "a ribbon": (lambda t: ["generate", "a", "--reference", picture(t / "x.png", (900, 9))], "narrower than 1:8"),
    "plain with a picture": (lambda t: ["generate", "a", "--style", "plain", "--reference", picture(t / "x.png", (9, 9))], "--style aligned"),
    "bad size": (lambda t: ["generate", "a", "b", "--size", "big"], "WIDTHxHEIGHT"),
    "odd size": (lambda t: ["generate", "a", "b", "--size", "60"], "64 is the nearest"),
    "bad steps": (lambda t: ["generate", "a", "b", "--steps", "0"], "num_inference_steps"),
    "bad strength": (lambda t: ["generate", "a", "b", "--strength", "-1"], "strength"),
    "strength nan": (lambda t: ["generate", "a", "b", "--strength", "nan"], "strength"),
    "bad blocks": (lambda t: ["generate", "a", "b", "--blocks", "99"], "this model has blocks 0-"),
    "bad window": (lambda t: ["generate", "a", "b", "--at-steps", "half"], "cannot read 'half'"),
    "bad device": (lambda t: ["generate", "a", "b", "--device", "gpu9"], "gpu9"),
    "bad dtype": (lambda t: ["generate", "a", "b", "--dtype", "int3"], "choose float32"),
    "offload on a CPU": (lambda t: ["generate", "a", "b", "--offload", "model", "--device", "cpu"], "leave it out"),
    "used folder": (lambda t: ["generate", "a", "b", "--out", used(t)], "exists already"),
    "no such recipe": (lambda t: ["run", str(t / "no.json")], "cannot read the recipe"),
    "no JSON": (lambda t: ["run", text(t / "x.json")], "Invalid JSON"),
    "a foreign PNG": (lambda t: ["run", picture(t / "x.png", (9, 9))], "carries no recipe"),
    "unknown field": (lambda t: ["run", text(t / "x.json", '{"prompts": ["a"], "stile": 1}')], "stile"),
    "unknown control": (lambda t: ["run", text(t / "x.json", '{"prompts": ["a", "b"], "control": [{"kind": "x"}]}')], "control.0: there is no control 'x'"),
    "no prompts": (lambda t: ["run", text(t / "x.json", '{"prompts": []}')], "prompts"),
    "another model's heads": (lambda t: ["generate", "a", "--style", "plain", "--heads", "flux-green"], "is for black-forest-labs/FLUX.1-dev"),
    "unknown preset": (lambda t: ["generate", "a", "--style", "plain", "--heads", "flux-gren"], "there is no preset 'flux-gren'"),
    "no such head": (lambda t: ["generate", "a", "--style", "plain", "--heads", "L1H9"], "block 1 has heads 0-3"),
    "u over 1": (lambda t: ["generate", "a", "--style", "plain", "--heads", "L1H1", "--u", "2"], "u: Input should be less than or equal to 1"),
    "u without heads": (lambda t: ["generate", "a", "--style", "plain", "--u", "0.5"], "belong to --heads"),
    "a negative w": (lambda t: ["generate", "a", "--style", "plain", "--heads", "L1H1", "--head-strength", "-1"], "strength"),
    "no prompt file": (lambda t: ["heads", "search", "--objective", "contrast", "--prompts", str(t / "no.txt")], "cannot read the prompts"),
    "an empty prompt file": (lambda t: ["heads", "search", "--objective", "contrast", "--prompts", text(t / "p.txt", "# none")], "holds no prompt"),
    "unknown objective": (lambda t: ["heads", "search", "--objective", "contrst", "--prompts", text(t / "p.txt")], "contrast"),
    "seeds backwards": (lambda t: ["heads", "search", "--objective", "contrast", "--prompts", text(t / "p.txt"), "--seeds", "4-2"], "runs backwards"),
    "too many heads": (lambda t: ["heads", "search", "--objective", "contrast", "--prompts", text(t / "p.txt"), "--rounds", "99"], "fewer rounds"),
    "a search of a bad size": (lambda t: ["heads", "search", "--objective", "contrast", "--prompts", text(t / "p.txt"), "--size", "60"], "64 is the nearest"),
    "no embedded model": (lambda t: ["embedded", "eval", "nosuch"], "no embedded model"),
    "no artwork": (lambda t: ["embedded", "eval", "tiny-sd3", "--artwork", str(t / "no.npz")], "there is no artwork"),
    "no run to export": (lambda t: ["embedded", "export", "tiny-sd3", "--run", str(t)], "holds no training run"),
}  # fmt: skip


def text(path: Path, body: str = "no picture, no recipe") -> str:
    path.write_text(body)
    return str(path)


def torn(path: Path) -> str:
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:900])
    return str(path)


def other(folder: Path, name: str = "StableDiffusionPipeline") -> str:
    text(folder / "model_index.json", json.dumps({"_class_name": name}))
    return str(folder)


def used(folder: Path) -> str:
    (folder / "kept").mkdir()
    text(folder / "kept" / "file")
    return str(folder / "kept")


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_code_2(words, message, monkeypatch, tmp_path, capsys):
    given = words(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in given else ["--out", str(tmp_path / "out" / "set")]
    assert call(monkeypatch, *given, *out) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    if message != "Missing argument":
        assert len([line for line in said.strip().splitlines() if not line.startswith("warning: ")]) == 1
    left = [p for p in sorted(tmp_path.rglob("*")) if p not in before and p != tmp_path / "out"]
    assert not left, "nothing half-written"


def test_recipe_round_trip():
    recipe = Recipe.model_validate({"prompts": ["a", "b"], "control": [{"kind": "stylealigned", "strength": 0.5}]})
    assert Recipe.model_validate_json(recipe.dump()) == recipe
    with pytest.raises(ControlError, match="cannot read"):
        read_recipe("missing.json")


def test_info_and_methods(monkeypatch, capsys):
    assert call(monkeypatch, "info", "--model", "tiny-flux") == 0
    out = capsys.readouterr().out
    assert "single:0" in out
    assert "max_sequence_length: 24" in out
    assert call(monkeypatch, "methods") == 0
    assert "key_scale = 1.1" in capsys.readouterr().out
