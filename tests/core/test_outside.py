"""A rehearsal: a method in one file outside the package; and files that cannot be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnctrl import Control, ControlError, Recipe, Where, attached, read_recipe
from attnctrl.registry import controls, controls_of, load_file

ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).parents[1] / "outside" / "ablate.py"

# ---------------------------------------------------------------- the rehearsal


def attnctrl(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    settings = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "attnctrl", *words], capture_output=True, text=True, env=settings, cwd=ROOT
    )


def test_a_method_outside_the_package_is_drawn_and_replayed(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    words = [
        "generate",
        "a fox",
        "a car",
        "--control",
        "ablate:heads=L1H0 L3H1,strength=0.8",
        "--control",
        "aligned:strength=0.5",
    ]
    fast = ["--model", "tiny-flux", "--steps", "2", "--device", "cpu"]
    done = attnctrl(*words, *fast, "--out", str(first), "--load", str(OUTSIDE))
    assert done.returncode == 0, done.stderr
    assert '"kind": "ablate"' in (first / "recipe.json").read_text()
    replayed = attnctrl("run", str(first / "00.png"), "--out", str(again), ATTNCTRL_LOAD=str(OUTSIDE))
    assert "2 of 2 pictures are identical" in replayed.stdout, replayed.stderr
    unknown = attnctrl("run", str(first / "recipe.json"), "--out", str(tmp_path / "no"))
    assert unknown.returncode == 2
    assert "there is no control 'ablate'" in " ".join(unknown.stderr.split())
    assert "--load FILE.py" in " ".join(unknown.stderr.split())


def test_a_method_outside_the_package_in_python(table, pipe, latents_of, tmp_path):
    load_file(OUTSIDE)
    load_file(OUTSIDE)
    (control,) = controls_of("ablate:heads=L1H0 L3H1,strength=0.8")
    cls = type(control)
    stock = latents_of(pipe)

    def drawn(one: Control) -> torch.Tensor:
        with attached(pipe, one):
            return latents_of(pipe)

    assert torch.equal(drawn(cls(strength=0.0)), stock)
    assert not torch.equal(drawn(control), stock)
    assert torch.equal(drawn(control), drawn(control))
    whole = cls(where=Where(blocks="1")).plan(None)
    out = torch.ones(1, 2, 4, 3)
    at = type("At", (), {"out": lambda self: out, "gate": torch.tensor([0.0, 1.0, 0.0, 1.0])})()
    assert torch.equal(whole.output(at).mean((0, 1, 3)), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    (tmp_path / "r.json").write_text(Recipe(prompts=("a",), control=(control,)).dump())
    assert read_recipe(tmp_path / "r.json").control == (control,)


# ---------------------------------------------------------------- files that cannot be loaded

FAULTS = {
    "syntax": ("x = (", "SyntaxError"),
    "import": ("\nimport no_such_module_anywhere\n", "No module named 'no_such_module_anywhere' (line 2)"),
    "raises": ("1 / 0", "ZeroDivisionError: division by zero (line 1)"),
    "another's kind": (OUTSIDE.read_text().replace("ablate", "nag"), "two controls are called 'nag'"),
    "half done": (OUTSIDE.read_text() + "\nraise ValueError('late')\n", "ValueError: late"),
}


@pytest.mark.parametrize(("body", "words"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_fails_leaves_nothing(body, words, table, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(body)
    before = controls()
    for _ in range(2):
        with pytest.raises(ControlError) as refused:
            load_file(path)
        assert words in str(refused.value)
        assert str(refused.value).startswith(f"--load {path}: ")
        assert "\n" not in str(refused.value)
        assert controls() == before
    path.write_text(OUTSIDE.read_text())
    load_file(path)
    assert "ablate" in controls(), "once it is mended"


def test_files_that_are_none(monkeypatch, tmp_path):
    for path, words in ((tmp_path / "no.py", "there is no such file"), (tmp_path, "there is no such file")):
        with pytest.raises(ControlError, match=words):
            load_file(path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ControlError, match=r"name it FILE\.py"):
        load_file(tmp_path / "a.txt")
    monkeypatch.setenv("ATTNCTRL_LOAD", str(tmp_path / "no.py"))
    with pytest.raises(ControlError, match=r"no\.py: there is no such file"):
        controls()


def test_entry_points_are_loaded_and_a_broken_one_is_named(tmp_path):
    home = tmp_path / "site"
    (home / "theirs-1.0.dist-info").mkdir(parents=True)
    (home / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = "[attnctrl.controls]\nablate = theirs:Ablate\nbroken = no_such_module_anywhere\n"
    (home / "theirs-1.0.dist-info" / "entry_points.txt").write_text(points)
    (home / "theirs.py").write_text(OUTSIDE.read_text())
    path = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
    done = attnctrl("methods", "ablate", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "Head ablation: what the chosen heads say is left out" in done.stdout
    assert "the controls of no_such_module_anywhere cannot be loaded and are missing" in " ".join(done.stderr.split())
