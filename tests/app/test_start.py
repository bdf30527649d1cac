"""The first word comes soon: what needs no tensor imports none of the libraries that take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "peft", "gradio", "accelerate", "numpy", "huggingface_hub")
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}
AFTER = f"""
import json, sys
sys.argv = ["attnctrl", *json.loads(sys.argv[1])]
from attnctrl.app.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))
"""
HELP = [
    [], ["demo"], ["generate"], ["edit"], ["run"], ["info"], ["app"], ["attention"], ["methods"], ["heads"], ["heads", "search"],
    ["heads", "check"], ["heads", "atlas"], ["heads", "presets"], ["eval"], ["eval", "style"], ["eval", "heads"],
    ["eval", "edit"], ["eval", "masks"], ["eval", "report"], ["eval", "diff"], ["eval", "metrics"], ["embedded"],
]  # fmt: skip
SAID = [
    (["--version"], 0),
    (["methods"], 0),
    (["heads", "presets"], 0),
    (["generate", "a fox", "--out", "new"], 2),
    (["generate", "a fox", "a car", "--size", "4096"], 2),
    (["generate", "a fox", "a car", "--out", ""], 2),
    (["generate", "a fox", "a car", "--model", "nosuch"], 2),
    (["run", "no.json"], 2),
    (["edit", "a fox", "a car", "--region", "dog"], 2),
    (["attention", "a fox", "--word", "car", "--out", "new"], 2),
    (["app", "--port", "99999"], 2),
    (["heads", "search", "--objective", "os:system", "--prompts", __file__, "--out", "new"], 2),
    (["eval", "style", "--out", "new", "--threads", "0"], 2),
    (["eval", "edit", "--out", "new", "--threads", "0"], 2),
    (["eval", "masks", "--out", "new", "--steps", "0"], 2),
]


def after(words: list[str], folder: Path) -> tuple[int, list[str]]:
    """The exit code of a command in a process of its own, and the heavy libraries that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER, json.dumps(words)], cwd=folder, env=HERE, capture_output=True, text=True
    )
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    return code or 0, heavy


@pytest.mark.parametrize(("words", "code"), SAID, ids=[" ".join(words)[:40] for words, _ in SAID])
def test_no_heavy_library_before_it_is_needed(words, code, tmp_path):
    assert after(words, tmp_path) == (code, [])
    assert not list(tmp_path.iterdir())


def test_help_of_every_command_imports_nothing_heavy(tmp_path):
    code = AFTER.replace("sys.argv = ", "everyone = ").replace(
        "try:\n    main()", "for words in everyone[1:]:\n  try:\n    sys.argv = ['attnctrl', *words, '--help']; main()"
    )
    code = code.replace(
        "except SystemExit as ended:\n    code = ended.code",
        "  except SystemExit as ended:\n    code = ended.code\n    assert not code, words",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(HELP)], cwd=tmp_path, env=HERE, capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_every_command_is_listed_here():
    from attnctrl.app.cli import app

    names = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    assert names | groups == {words[0] for words in HELP if words}
