"""The head atlas: equal to single calls, w = -1 is the perturbed prediction, resumed without a change, a page that loads nothing."""

from __future__ import annotations

import json
import re
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from test_search import Bright, Red, make
from tiny import tiny_flux, tiny_sd3

from attnctrl import ControlError, SoftPAG, Where
from attnctrl.app.cli import main
from attnctrl.evals.heads.atlas import AtlasConfig, AtlasRun
from attnctrl.evals.heads.atlas_maps import LESS, MORE, NONE, digits, ends, heat_maps, shade, signed
from attnctrl.evals.heads.atlas_page import page, thumbnail, write_atlas
from attnctrl.pipelines.presets import HeadPreset, preset_of

SIZE = {"num_inference_steps": 2, "height": 64, "width": 64}
builds = pytest.mark.parametrize("build", [tiny_sd3, tiny_flux], ids=["SD3", "FLUX"])


def run_in(folder, pipe=None, objectives=None, **more) -> AtlasRun:
    objectives = objectives or {"bright": Bright(), "red": Red()}
    options = {
        "model": "tiny",
        "objectives": tuple(objectives),
        "prompt": "a fox",
        "batch_size": 3,
        **SIZE,
        "where": Where(blocks="1-2"),
    }
    return AtlasRun(pipe or make(), AtlasConfig(**{**options, **more}), objectives, folder)


def off(pipe) -> dict[str, float]:
    """No guidance but the heads'."""
    return {"true_cfg_scale": 1.0} if hasattr(pipe.transformer.config, "guidance_embeds") else {"guidance_scale": 1.0}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Of the eight heads of two blocks, with a prompt that wants to be a program."""
    run = run_in(tmp_path_factory.mktemp("atlas") / "a", prompt="<script>alert('fox')</script> & “an owl”")
    found = run.run()
    write_atlas(found, run.ledger)
    return found


@builds
def test_every_value_is_that_of_single_calls(build, tmp_path):
    pipe = make(build)
    found = run_in(tmp_path, pipe, seed=7, where=Where(heads="L0H1 L1H0 L1H3"), u=0.6, strength=2.5).run()

    def single(**more) -> np.ndarray:
        generator = torch.Generator().manual_seed(7)
        return np.asarray(pipe("a fox", generator=generator, **SIZE, **off(pipe), **more).images[0], float)

    plain = single()
    assert [f"L{block}H{head}" for block, head in found.cells] == ["L0H1", "L1H0", "L1H3"]
    assert found.plain == pytest.approx({"bright": plain.mean(), "red": plain[..., 0].mean()}, abs=0.05)
    for head in found.cells:
        for kind, w in (("guided", 2.5), ("perturbed", -1.0)):
            where = Where(heads=f"L{head[0]}H{head[1]}")
            picture = single(control=SoftPAG(where=where, u=0.6, strength=w))
            assert np.abs(picture - plain).max() > 5
            assert np.abs(picture - np.asarray(Image.open(found.picture(kind, head)), float)).max() <= 2
            values = {"bright": picture.mean(), "red": picture[..., 0].mean()}
            assert getattr(found.cells[head], kind) == pytest.approx(values, abs=0.05)
            if kind == "guided":
                assert found.gain(head, "red") == pytest.approx(values["red"] - plain[..., 0].mean(), abs=0.1)


@builds
def test_minus_one_is_the_perturbed_prediction_itself(build, monkeypatch):
    """The stock pipeline with one head's output replaced by V, against guidance with w = -1 and u = 1."""
    pipe, own = make(build), torch.nn.functional.scaled_dot_product_attention
    blocks, calls = (5 if build is tiny_flux else 3), []

    def replaced(query, key, value, *args, **kwargs):
        out = own(query, key, value, *args, **kwargs)
        if query.shape[1] == 4 and query.shape[3] == 16:
            calls.append(0)
            if len(calls) % blocks == 2:
                out = out.clone()
                out[:, 3] = value[:, 3]
        return out

    def latents(**more):
        generator = torch.Generator().manual_seed(0)
        return pipe("a fox", generator=generator, output_type="latent", **SIZE, **off(pipe), **more).images

    plain = latents()
    result = latents(control=SoftPAG(where=Where(heads="L1H3"), u=1.0, strength=-1.0))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", replaced)
    expected = latents()
    assert len(calls) == 2 * blocks
    assert (expected - plain).abs().max() > 1e-2 * plain.abs().max()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_guidance_goes_down_to_minus_one_and_presets_to_zero():
    assert not SoftPAG(strength=-1.0).off
    with pytest.raises(ValidationError, match="greater than or equal to -1"):
        SoftPAG(strength=-1.1)
    preset = {
        "name": "n",
        "model": "m",
        "architecture": "sd3",
        "blocks": 1,
        "heads_a_block": 1,
        "heads": "L0H0",
        "source": "s",
        "status": "s",
    }
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        HeadPreset(**preset, strength=-0.5)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        preset_of("L0H0", "tiny", make(), strength=-0.5, u=None)
    with pytest.raises(ValidationError, match="greater than 0"):
        AtlasConfig(model="m", objectives=("bright",), prompt="a fox", strength=-1.0)


def test_a_killed_atlas_goes_on_to_the_same_result(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = run_in(whole).run().as_json()
    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            run_in(parts, objectives={"bright": Bright(stop), "red": Red()}).run()
        with (parts / "results-0.jsonl").open("ab") as torn:
            torn.write(b'{"id": "half a li')
    done, seen = run_in(parts).ledger.done, []
    assert len(done) == 3
    counted = Bright()
    run = run_in(parts, objectives={"bright": counted, "red": Red()})
    assert run.run(lambda *state: seen.append(state)).as_json() == expected
    assert 10**9 - counted.left == 2 * 2, "the plain picture and two of four batches are there"
    assert [state[:2] for state in seen] == [(15, 17), (17, 17)]
    assert seen[0][2] > 0 == seen[1][2]
    pictures = {path.name: path.read_bytes() for path in (whole / "pictures").iterdir()}
    assert len(pictures) == 17
    assert {path.name: path.read_bytes() for path in (parts / "pictures").iterdir()} == pictures
    (parts / "pictures" / "L2H3-perturbed.png").unlink()
    again = Bright()
    assert run_in(parts, objectives={"bright": again, "red": Red()}).run().as_json() == expected
    assert 10**9 - again.left == 2, "only the batch whose picture is gone"
    assert {path.name: path.read_bytes() for path in (parts / "pictures").iterdir()} == pictures


def test_a_picture_is_there_before_its_line(tmp_path, monkeypatch):
    run = run_in(tmp_path)
    append, missing = run.ledger.append, []

    def watched(identity, rows):
        names = [path.name for path in (tmp_path / "pictures").iterdir()]
        missing.extend(name for name in names if name.startswith("."))
        assert len(names) == (1 if len(names) == 1 else 2 * sum("guided" in name for name in names) + 1)
        append(identity, rows)

    monkeypatch.setattr(run.ledger, "append", watched)
    run.run()
    assert not missing


def test_two_processes_share_the_heads(tmp_path):
    alone = run_in(tmp_path / "alone").run().as_json()

    def process(rank, wait):
        counted = Bright()
        run = run_in(tmp_path / "both", objectives={"bright": counted, "red": Red()})
        run.ledger.rank = rank
        run.state = SimpleNamespace(num_processes=2, process_index=rank, wait_for_everyone=wait)
        return run, counted

    def ended():
        raise KeyboardInterrupt

    second, drawn = process(1, ended)
    with pytest.raises(KeyboardInterrupt):
        second.run()
    first, more = process(0, lambda: None)
    assert first.run().as_json() == alone
    assert (10**9 - drawn.left, 10**9 - more.left) == (4, 5), "of a plain picture and four batches of two kinds"


class Reader(HTMLParser):
    """What a browser would find: cells, sources, scripts, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells, self.tags, self.scripts, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if "data-at" in dict(attributes):
            self.cells.append(dict(attributes)["data-at"])

    def handle_data(self, text):
        if self.tags and self.tags[-1][0] == "script" and text.strip():
            self.scripts.append(text)
        self.text += text


def test_the_page_has_every_cell_and_loads_nothing(atlas):
    text = (atlas.folder / "atlas.html").read_text(encoding="utf-8")
    seen = Reader(text)
    names = [f"L{block}H{head}" for block in (1, 2) for head in range(4)]
    assert seen.cells == names
    assert [tag for tag, _ in seen.tags].count("script") == 2
    assert "alert(" not in seen.scripts[1]
    assert "“<script>alert('fox')</script> & “an owl””" in seen.text
    assert "<script>alert" not in text
    assert not re.search(r"https?:|(?:src|href)=[\"']?(?!data:)[^\"'> ]|url\(|@import", text)
    assert "default-src 'none'" in text
    data = json.loads(seen.scripts[0])
    assert list(data["cells"]) == names
    assert [one["name"] for one in data["objectives"]] == ["bright", "red"]
    for head, (name, cell) in zip(atlas.cells, data["cells"].items(), strict=True):
        assert cell["gains"] == [atlas.gain(head, one) for one in ("bright", "red")]
        assert cell["block"].startswith(name[:2])
        for kind in ("guided", "perturbed"):
            assert cell["pictures"][kind] == thumbnail(atlas.picture(kind, head))
    for tag, attributes in seen.tags:
        if tag == "td" and "data-at" in attributes:
            share = abs(data["cells"][attributes["data-at"]]["gains"][0]) / data["objectives"][0]["limit"]
            assert float(re.search(r"--t: ([\d.]+)%", attributes["style"])[1]) == pytest.approx(100 * share, abs=0.06)


@pytest.mark.parametrize(("kind", "size", "shown"), [("png", (640, 320), (192, 96)), ("jpeg", (64, 64), (64, 64))])
def test_a_thumbnail_is_the_smaller_of_png_and_jpeg(kind, size, shown, tmp_path):
    flat, noise = Image.new("RGB", size, "#336699"), Image.effect_noise(size, 40).convert("RGB")
    picture = flat if kind == "png" else noise
    picture.save(tmp_path / "a.png")
    named, body = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", thumbnail(tmp_path / "a.png")).groups()
    with Image.open(BytesIO(b64decode(body))) as image:
        assert (named, image.format, image.size) == (kind, kind.upper(), shown)
        assert np.abs(np.asarray(image, float) - np.asarray(picture.resize(shown), float)).mean() < 3


def test_the_map_and_the_values(atlas):
    values = json.loads((atlas.folder / "atlas.json").read_text(encoding="utf-8"))
    assert values["prompt"] == atlas.config.prompt
    assert values["weights"] == atlas.config.weights is not None
    for (block, head), cell in atlas.cells.items():
        entry = values["heads"][f"L{block}H{head}"]
        assert entry["gain"] == {name: cell.guided[name] - atlas.plain[name] for name in ("bright", "red")}
        assert (entry["guided"], entry["perturbed"]) == (cell.guided, cell.perturbed)
    with Image.open(atlas.folder / "atlas.png") as image:
        colours = {colour for _, colour in image.getcolors(10**6)}
    for name in ("bright", "red"):
        for head in atlas.cells:
            assert shade(atlas.gain(head, name) / atlas.limit(name)) in colours
    assert (shade(-1.0), shade(0.0), shade(1.0)) == (LESS, NONE, MORE)
    assert [signed(x, 2) for x in (0.125, -3.0, 0.001, -0.001)] == ["+0.12", "−3.00", "0.00", "0.00"]
    assert [digits(x) for x in (0.0, 0.27, 4.0, 45.0, 1e-20)] == [0, 3, 2, 1, 9]


def test_a_few_strong_heads_do_not_pale_the_others(atlas):
    from dataclasses import replace

    from attnctrl.evals.heads.atlas import Cell

    gains = {(block, head): 0.01 * head for block in range(20) for head in range(10)}
    many = replace(
        atlas, plain={"bright": 0.0}, labels={b: f"L{b} (joint {b})" for b in range(20)},
        cells={head: Cell({"bright": gain}, {"bright": 0.0}) for head, gain in (gains | {(3, 3): 50.0, (4, 4): -9.0}).items()},
    )  # fmt: skip
    assert many.limit("bright") == pytest.approx(0.09)
    assert many.largest("bright") == 50.0
    assert ends(many, "bright") == ("−0.0900 or less", "+0.0900 or more")
    assert ends(atlas, "bright") == tuple(
        signed(s * atlas.limit("bright"), digits(atlas.limit("bright"))) for s in (-1, 1)
    )
    colours = [colour for _, colour in heat_maps(many).getcolors(10**6)]
    assert MORE in colours
    none = replace(many, cells={head: Cell({"bright": 0.0}, {"bright": 0.0}) for head in gains})
    assert ends(none, "bright") == ("0", "0")
    assert heat_maps(none).width > 200


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["attnctrl", "heads", "atlas", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


ASKED = [
    "--model",
    "tiny-flux",
    "--prompt",
    "a fox",
    "--steps",
    "1",
    "--size",
    "32",
    "--device",
    "cpu",
    "--blocks",
    "0",
]


def test_the_command_draws_and_goes_on(monkeypatch, tmp_path, capsys):
    words = [*ASKED, "--objective", "color:blue", "--objective", "contrast", "--out", str(tmp_path / "a")]
    for begun in ("4 heads, 9 pictures\n", "4 heads, 9 pictures; 2 batches are done already\n"):
        assert call(monkeypatch, *words) == 0
        assert begun in capsys.readouterr().out
    names = {".lock-0", "atlas.html", "atlas.json", "atlas.png", "config.json", "pictures", "results-0.jsonl"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert json.loads((tmp_path / "a" / "atlas.json").read_text())["settings"]["steps"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--blocks", "99"], "blocks: 99 is out of range; this model has blocks 0-7"),
        (["--blocks", "fist"], "no stream 'fist'"),
        (["--objective", "color:bleu"], "bleu"),
        (["--objective", "shrapness"], "did you mean sharpness?"),
        (["--u", "2"], "u: Input should be less than or equal to 1"),
        (["--strength", "-1"], "strength: Input should be greater than 0"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0"),
        (["--batch-size", "0"], "batch_size: Input should be greater than or equal to 1"),
        (["--size", "33"], "height 33 is no multiple of"),
        (["--out", "file.txt"], "file.txt is a file; name a new folder"),
        (["--out", "full"], "full holds other files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gives_one_sentence(words, says, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert call(monkeypatch, *ASKED, "--objective", "contrast", "--out", "new", *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_damaged_picture_and_another_run_are_named(tmp_path):
    run = run_in(tmp_path)
    found = run.run()
    found.picture("guided", (2, 0)).write_bytes(b"no picture")
    with pytest.raises(ControlError, match=r"L2H0-guided.png is no picture; delete it"):
        page(found)
    with pytest.raises(ControlError, match="begun with another prompt"):
        run_in(tmp_path, prompt="a key")
