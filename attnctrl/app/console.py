"""What the commands share: the console, lists of numbers and lines, and a bar that is told its time left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import ControlError
from ..files import checked_file

console = Console(emoji=False)
SEEDS = 100_000
"""As many as a run may have."""


class Bar:
    """A progress bar whose remaining time is told to it."""

    def __init__(self, title: str) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console)
        self.title = title

    def __enter__(self) -> Callable[[int, int, float], None]:
        self.bar.__enter__()
        task = self.bar.add_task(self.title, total=None, left="")

        def step(done: int, total: int, left: float) -> None:
            self.bar.update(task, completed=done, total=total, left=f"{duration(left)} left" if left else "")

        return step

    def __exit__(self, *fault: Any) -> None:
        self.bar.__exit__(*fault)


def duration(seconds: float) -> str:
    """A time for people."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def lines_of(path: Path) -> tuple[str, ...]:
    """The prompts of a file, one a line; ControlError for none."""
    try:
        lines = [line.strip() for line in checked_file(path, "the prompts").read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or "it is no text file"
        raise ControlError(f"cannot read the prompts {path}: {reason}") from None
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise ControlError(f"{path} holds no prompt; write one a line")
    return found


def numbers_of(text: str) -> tuple[int, ...]:
    """`0-4` or `0,3,7`."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            span = range(int(first), int(last or first) + 1)
            if int(last or first) >= 2**63 or len(span) > SEEDS:
                raise ControlError(f"--seeds {text[:60]}: at most {SEEDS} seeds, each below 2^63")
            numbers += span
    except ControlError:
        raise
    except ValueError:
        raise ControlError(f"--seeds {text[:60]}: write 0-4 or 0,3,7") from None
    if len(set(numbers)) < len(numbers):
        raise ControlError(f"--seeds {text[:60]}: a seed is given twice")
    if not numbers:
        raise ControlError(f"--seeds {text}: the range runs backwards; write 0-4 or 0,3,7")
    return tuple(numbers)
