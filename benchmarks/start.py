"""Start-up time of every command: `python benchmarks/start.py [--before CHECKOUT] [--times 3] [--trace]`.

Process time (user and system) of a fresh interpreter, which other work changes little. With `--before`, another
checkout of the package is timed in turns with this one; what it does not have stays empty. The last rows draw: the
first picture of an embedded model, and the app's page until it answers. `--trace` adds the slowest imports of the three
worst.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import psutil

COMMANDS = (
    "--version", "--help", "methods", "methods nag", "generate --help", "run --help", "app --help", "attention --help",
    "heads --help", "heads search --help", "heads presets", "eval --help", "eval style --help", "eval metrics",
    "embedded --help", "generate fox", "generate fox car --size 4096", "generate fox car --model nosuch",
    "run no.json", "app --port 99999",
)  # fmt: skip
PICTURES = ('generate "a fox" --style plain', 'generate "a fox" --style plain --model tiny-flux')
PAGE = "app --no-browser"
LACKS = re.compile(r"No such (command|option)|unexpected extra argument", re.IGNORECASE)
PORTS = count(7931)
PATIENCE = 30
"""Seconds of process time after which a command hangs."""
HERE = Path(__file__).parents[1]


def took(words: list[str], checkout: Path, flags: tuple[str, ...] = ()) -> tuple[float | None, str]:
    """Seconds of process time, None for a command that this checkout does not have, infinite for one that does not end;
    and what was said on stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", f"{folder}/new"] if words[0] == "generate" and words[-1] != "--help" else []
        command = [sys.executable, *flags, "-m", "attnctrl", *words, *out]
        environment, ending = _environment(checkout), {"capture_output": True, "text": True, "preexec_fn": _bounded}
        try:
            done = subprocess.run(command, env=environment, cwd=folder, timeout=3 * PATIENCE, **ending)
        except subprocess.TimeoutExpired:
            return math.inf, ""
    if done.returncode == -signal.SIGXCPU:
        return math.inf, ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return (None if LACKS.search(done.stderr) else spent), done.stderr


def page(checkout: Path) -> float:
    """Seconds of process time until the app's page answers, on a port of its own."""
    port = next(PORTS)
    words = [sys.executable, "-m", "attnctrl", *PAGE.split(), "--port", str(port)]
    silent = subprocess.DEVNULL
    app = subprocess.Popen(words, env=_environment(checkout), stdout=silent, stderr=silent, cwd=tempfile.gettempdir())
    try:
        for _ in range(6000):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60):
                    spent = psutil.Process(app.pid).cpu_times()
                    return spent.user + spent.system
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise SystemExit("the app does not answer")
    finally:
        app.terminate()
        app.wait()


def slowest(words: list[str], many: int = 6) -> list[tuple[float, str]]:
    """The imports that took longest by themselves, in seconds."""
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)", took(words, HERE, ("-X", "importtime"))[1])
    return sorted(((int(time) / 1e6, name) for time, name in rows), reverse=True)[:many]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout of the package")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--trace", action="store_true")
    given = parser.parse_args()
    checkouts = [*([given.before.resolve()] if given.before else []), HERE]
    found = {}
    heads = [f"{when}{what}, s" for when in ("before: ", "")[-len(checkouts) :] for what in ("min", "median")]
    print(f"| command | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for command in (*COMMANDS, *PICTURES, PAGE):
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        turns = [
            [page(one) if command == PAGE else took(words, one)[0] for one in checkouts] for _ in range(given.times)
        ]
        cells = []
        for times in zip(*turns, strict=True):
            known = [one for one in times if one is not None]
            cells += [_cell(min(known)), _cell(statistics.median(known))] if known else ["", ""]
        if command in COMMANDS:
            found[command] = min(known)
        print(f"| `attnctrl {command}` | {' | '.join(cells)} |", flush=True)
    for command in sorted(found, key=lambda one: -found[one])[: 3 if given.trace else 0]:
        listed = ", ".join(f"{name} {time:.3f}" for time, name in slowest(command.split()))
        print(f"\n`attnctrl {command}`: {listed}")


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE + 5))


def _cell(seconds: float) -> str:
    return "hangs" if math.isinf(seconds) else f"{seconds:.2f}"


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
