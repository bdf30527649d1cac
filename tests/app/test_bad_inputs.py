"""Odd and wrong inputs of every command, as a new user gives them: one line, exit code 2, no model, nothing left."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import bad_evaluations
import bad_inputs
import pytest
from bad_inputs import ONE, OUT
from PIL import Image

from attnctrl.app import app_cli, attention_cli, cli, eval_cli, eval_edit_cli, eval_run, heads_cli

BAD = [*bad_inputs.BAD, *bad_evaluations.BAD]


def test_there_are_many():
    assert len(BAD) >= 200


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> dict[str, str]:
    """Files of all kinds that are not what a command wants."""
    home = tmp_path_factory.mktemp("things")
    sizes = {"picture": (64, 64), "other": (32, 32), "small": (4, 90), "ribbon": (900, 9)}
    for name, size in sizes.items():
        Image.effect_noise(size, 90).save(home / f"{name}.png")
    (home / "torn.png").write_bytes((home / "picture.png").read_bytes()[:900])
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (home / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    texts = {"text": "no picture, no recipe", "empty": "# none", "lines": "a fox\na car\n", "broken.py": "1 +"}
    for name, text in texts.items():
        (home / name).write_text(text)
    Image.new("L", (64, 64)).save(home / "black.png")
    preset = {"name": "x", "model": "tiny-sd3", "architecture": "sd3", "blocks": 99, "heads_a_block": 4}
    texts = {
        "tall.json": json.dumps({**preset, "heads": "L1H1", "source": "", "status": ""}),
        "other_kind.json": json.dumps({**preset, "architecture": "flux", "heads": "L1H1", "source": "", "status": ""}),
        "array.json": "[]", "half.json": '{"heads":', "deep.json": "[" * 100_000,
        "leaves.py": "raise SystemExit(3)", "no_class.py": "import attnctrl\nattnctrl.register(3)",
    }  # fmt: skip
    for name, text in texts.items():
        (home / name).write_text(text)
    os.mkfifo(home / "pipe")
    for name, file, text in (
        ("no_index", "model_index.json", "{}"), ("bad_index", "model_index.json", "oops"),
        ("damaged", "config.json", "oops"),
    ):  # fmt: skip
        (home / name).mkdir()
        (home / name / file).write_text(text)
    (home / "folder").mkdir()
    (home / "used").mkdir()
    (home / "used" / "file").write_text("kept")
    return {path.stem: str(path) for path in home.iterdir()}


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a model was asked for")


def filled(word: str, things: dict[str, str], folder: Path) -> str:
    """The word with {names} of things in their places; {recipe:BODY} is a new file."""
    if word.startswith("{recipe:"):
        (folder / "bad.json").write_text(word[8:-1])
        return str(folder / "bad.json")
    for name, path in things.items():
        word = word.replace("{" + name + "}", path)
    return word


@pytest.mark.parametrize(("words", "says"), BAD, ids=[f"{i}-{words[0]}" for i, (words, _) in enumerate(BAD)])
def test_bad_input_is_refused_before_a_model_is_loaded(words, says, things, monkeypatch, tmp_path, capsys):
    for module in (cli, heads_cli, eval_cli, eval_edit_cli, eval_run, attention_cli):
        monkeypatch.setattr(module, "load_model", refuse)
    work, cache, kept = tmp_path / "work", tmp_path / "cache", Path(things["text"]).parent
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    given = [filled(word, things, tmp_path) for word in words]
    command = words[1] if words[0] in ("heads", "eval") and len(words) > 1 else words[0]
    if command in OUT and "--out" not in given and "Missing" not in says:
        start = 2 if words[0] in ("heads", "eval") else 1
        given[start:start] = ["--out", "new/set"]
    before = sorted(kept.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["attnctrl", *given])
    begun = time.process_time()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert time.process_time() - begun < 10
    if says:
        assert says in " ".join(said.split())
        assert len(said.strip().splitlines()) == 1, said
        assert said.startswith("attnctrl: ")
    assert "Traceback" not in said
    assert not list(work.rglob("*"))
    assert not cache.exists(), "a fault of ours"
    assert sorted(kept.rglob("*")) == before


def test_a_fault_of_ours_is_one_line_and_a_log(monkeypatch, tmp_path, capsys):
    def broken(path: Path) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("attnctrl.registry.load_file", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["attnctrl", "--load", "x.py", "methods"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert len(said.strip().splitlines()) == 1
    (log,) = tmp_path.rglob("*.txt")
    assert str(log) in said
    assert "RuntimeError: two" in log.read_text()


def test_ctrl_c_says_what_was_kept(monkeypatch, tmp_path, capsys):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load_model", stopped)
    monkeypatch.setattr(sys, "argv", ["attnctrl", *ONE, "--out", "new/set"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "attnctrl: stopped; no picture was written\n"
    assert os.listdir(tmp_path) == []


def test_doubts_are_said_once(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load_model", lambda *_: app_cli._limits(Path("no.json")))
    monkeypatch.setattr(sys, "argv", ["attnctrl", "generate", "a foxx, comic", " ", "--out", "set"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert said.count("does not know foxx; did you mean fox?") == 1
    assert said.count("prompt 1 is empty") == 1
    assert json.dumps(said).count("warning:") == 2
