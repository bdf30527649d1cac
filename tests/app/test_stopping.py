"""Ctrl-C, as a terminal sends it to a process at work: what is said, the exit code, what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from runs import stray

from attnctrl.evals.runs.finished import read_run

ROOT = Path(__file__).parents[2]
AT_WORK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it off
import diffusers
from attnctrl.app.cli import main
step = diffusers.FlowMatchEulerDiscreteScheduler.step
def told(*args, **more):
    print("step", flush=True)
    return step(*args, **more)
diffusers.FlowMatchEulerDiscreteScheduler.step = told
sys.argv = ["attnctrl", *sys.argv[1:]]
main()
"""
LINES = (
    '{"id": "one", "prompts": ["a fox, ink", "a key, ink"]}\n{"id": "two", "prompts": ["a star, ink", "a car, ink"]}\n'
)


def stopped(folder: Path, words: list[str], steps: int) -> tuple[int, str]:
    """The exit code and stderr of a command that gets Ctrl-C after so many solver steps."""
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AT_WORK, *words]
    with subprocess.Popen(
        command, cwd=folder, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stderr
        seen = 0
        for line in child.stdout:
            seen += line.strip() == "step"
            if seen == steps:
                child.send_signal(signal.SIGINT)
                break
        child.stdout.read()
        said = child.stderr.read()
    return child.returncode, said


def test_a_set_leaves_nothing(tmp_path):
    words = ["generate", "a fox", "a car", "--steps", "900", "--size", "32", "--device", "cpu", "--out", "new/set"]
    assert stopped(tmp_path, words, 2) == (130, "attnctrl: stopped; no picture was written\n")
    assert not list(tmp_path.iterdir())


def test_an_evaluation_keeps_what_is_done(tmp_path):
    (tmp_path / "lines.jsonl").write_text(LINES)
    words = ["eval", "style", "--sets", "lines.jsonl", "--methods", "plain,naive", "--metrics", "contrast"]
    words += ["--steps", "3", "--size", "32", "--device", "cpu", "--out", "run"]
    code, said = stopped(tmp_path, words, 8)
    assert (code, said) == (130, "attnctrl: stopped; what is done is kept in run; the same command goes on\n")
    rows = read_run(tmp_path / "run").rows
    assert 1 <= len(rows) < 4
    assert not any(row.failed for row in rows.values())
    assert not stray(tmp_path / "run")
    assert not [path for path in tmp_path.rglob(".*") if not path.name.startswith(".lock")], "no drafts"
