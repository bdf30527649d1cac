"""What editing costs: transformer calls with the source's row, as ratios to stock calls of one and of two rows.

python benchmarks/edit_cost.py           about four minutes on one core

The model is cost.py's, FLUX-shaped and random, one picture of 512 px with 64 text tokens. Rounds are interleaved; each
form's peak memory comes from a process of its own, at 1024 px. `naive` computes every attention of the two rows with a
map of all queries and keys.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from cost import SIDE, TEXT, arguments, transformer
from diffusers import FlowMatchEulerDiscreteScheduler

from attnctrl import Region, attached
from attnctrl.processors.capture import Capture
from attnctrl.registry import control_class, controls
from attnctrl.source import Source

ROUNDS, LARGE = 11, 64
REGION = Region(box=(0.25, 0.25, 0.75, 0.75))
WORDY = ("exchange", "prompt-to-prompt", "wordweights")
STOCK, TWO, NAIVE, CAPTURE = "stock, one row", "stock, two rows", "naive, two rows", "opening (capture)"


def source(side: int = SIDE) -> Source:
    """A run of noise, two steps long."""
    return Source("", torch.randn(3, side * side, 64), (side, side), torch.zeros(0, side * side), (), ())


def pipeline() -> SimpleNamespace:
    """What a session needs of a pipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    text = torch.randn(1, TEXT, 64), torch.randn(1, 64), None
    return SimpleNamespace(
        transformer=transformer("cpu"), scheduler=scheduler, encode_prompt=lambda **given: text, vae_scale_factor=8
    )


def forms() -> dict[str, Any]:
    """By name what is attached: nothing, or a control; every method that edits a source."""
    found: dict[str, Any] = {STOCK: None, TWO: None, NAIVE: None, CAPTURE: Capture(columns=tuple(range(16)))}
    for kind in controls("editing"):
        control = made(kind)
        if control is not None:
            found[kind] = control
    return found


def made(kind: str) -> Any:
    """A control of a kind with a region, and a way to go; None for one that reads words, which this model has not."""
    cls = control_class(kind)
    if kind in WORDY:
        return None
    given = {"region": REGION, "by": (0.25, 0.0), "where": {"steps": "all"}}
    return cls(**{name: value for name, value in given.items() if name in cls.model_fields})


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
    """Attention with its map."""
    return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value


@torch.no_grad()
def call(pipe: Any, name: str, control: Any, inputs: dict[str, Any], opened: Source) -> float:
    """Seconds of process time of one transformer call in a form."""
    rows = 2 if name in (TWO, NAIVE) else 1
    given = {key: x[:rows] if torch.is_tensor(x) and not key.endswith("ids") else x for key, x in inputs.items()}
    with ExitStack() as stack:
        if name == NAIVE:
            stack.enter_context(mock.patch("torch.nn.functional.scaled_dot_product_attention", dense))
        session = stack.enter_context(attached(pipe, control, source=opened))
        start = time.process_time()
        pipe.transformer(**given)
        seconds = time.process_time() - start
        if name == CAPTURE:
            session.recorded(control)
    return seconds


def alone(name: str) -> None:
    """Print by how many MiB the memory of a process rises in a call in a form."""
    pipe, control, inputs, opened = pipeline(), forms()[name], arguments("cpu", LARGE), source(LARGE)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call(pipe, name, control, inputs, opened)
    print(resident("VmHWM") - before)


def resident(what: str) -> float:
    """What Linux says of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def main() -> None:
    """Print the table."""
    pipe, inputs, opened = pipeline(), arguments("cpu"), source()
    times: dict[str, list[float]] = {name: [] for name in forms()}
    for _ in range(ROUNDS):
        for name, control in forms().items():
            times[name].append(call(pipe, name, control, inputs, opened))
    peaks = {
        name: float(subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True).stdout)
        for name in times
    }
    print(f"{torch.get_num_threads()} thread(s), {ROUNDS} rounds, process time")
    print("| form | to one stock row | to two (range) | peak memory, MiB |\n|---|---|---|---|")
    for name, seconds in times.items():
        one, two = ([a / b for a, b in zip(seconds, times[base], strict=True)] for base in (STOCK, TWO))
        spread = f"{statistics.median(two):.2f} ({min(two):.2f}-{max(two):.2f})"
        print(f"| {name} | {statistics.median(one):.2f} | {spread} | {peaks[name]:.0f} |")


if __name__ == "__main__":
    alone(sys.argv[1]) if len(sys.argv) > 1 else main()
