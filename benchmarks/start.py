"""Start-up time of every command: `python benchmarks/start.py [--times 5] [--trace]` prints a table.

Process time (user and system) of a fresh interpreter, which other work changes little; `--trace` adds the
slowest imports of the three worst.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile

COMMANDS = (
    "--version", "--help", "methods", "methods nag", "generate --help", "run --help", "app --help", "attention --help",
    "heads --help", "heads search --help", "heads presets", "eval --help", "eval style --help", "eval metrics",
    "embedded --help", "generate fox", "generate fox car --size 4096", "generate fox car --model nosuch",
    "run no.json", "app --port 99999",
)  # fmt: skip


def took(words: list[str], flags: tuple[str, ...] = ()) -> tuple[float, str]:
    """Seconds of process time, and what was said on stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *flags, "-m", "attnctrl", *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stderr


def slowest(words: list[str], many: int = 6) -> list[tuple[float, str]]:
    """The imports that took longest by themselves, in seconds."""
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)", took(words, ("-X", "importtime"))[1])
    return sorted(((int(time) / 1e6, name) for time, name in rows), reverse=True)[:many]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--trace", action="store_true")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        print("| command | min, s | median, s |\n|---|---|---|")
        for command in COMMANDS:
            words = [*command.split(), *(["--out", f"{folder}/new"] if command.startswith("generate f") else [])]
            times = [took(words)[0] for _ in range(given.times)]
            found[command] = min(times)
            print(f"| `attnctrl {command}` | {min(times):.2f} | {statistics.median(times):.2f} |", flush=True)
        for command in sorted(found, key=lambda one: -found[one])[: 3 if given.trace else 0]:
            listed = ", ".join(f"{name} {time:.3f}" for time, name in slowest(command.split()))
            print(f"\n`attnctrl {command}`: {listed}")


if __name__ == "__main__":
    main()
