"""What all evaluations of the command line share: their options, and a run from its beginning to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..pipelines.folders import run_folder
from .console import Bar, console
from .ending import keeping
from .models import load_model

if TYPE_CHECKING:
    from ..evals.runs.config import RunConfig
    from ..evals.runs.run import Run
    from ..evals.runs.sets import Item
    from ..evals.runs.tasks import Task

Folder = Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")]
Model = Annotated[str, typer.Option(help="An embedded model, a diffusers folder or a hub id.")]
Metrics = Annotated[
    str | None,
    typer.Option(help="Metrics by comma (attnctrl eval metrics lists them); the model's usual ones if not given."),
]
Methods = Annotated[list[str] | None, typer.Option(help="By comma: plain, aligned:strength=0.3, recipe.json ...")]
Sweep = Annotated[list[str] | None, typer.Option(help="strength=0.1,0.3,1: one arm a value; may be repeated.")]
Baseline = Annotated[str | None, typer.Option(help="The method that others are compared with; else the first.")]
First = Annotated[int | None, typer.Option(help="Only so many of the sets, spread evenly.")]
Seed = Annotated[int, typer.Option(help="Of the run; every set's own is a hash of it and the set's id.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps; the model's own number if not given.")]
Size = Annotated[str | None, typer.Option(help="Pixels: 64 or 80x48 (width x height).")]
Guidance = Annotated[float | None, typer.Option(help="FLUX: the distilled guidance; SD3: classifier-free guidance.")]
TrueCfg = Annotated[float | None, typer.Option(help="FLUX's classifier-free guidance; over 1 doubles the time.")]
Negative = Annotated[str | None, typer.Option(help="For classifier-free guidance.")]
Batch = Annotated[int, typer.Option(help="Pictures computed together; part of the run, floating point depends on it.")]
Threads = Annotated[int, typer.Option(help="CPU threads a process; part of the run, floating point depends on it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best one here if not given.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Offload = Annotated[str, typer.Option(help="none, model or sequential: for GPUs with little memory.")]


def own(device: str | None) -> str | None:
    """The asked device, or this process's own among several."""
    from ..evals.ledger import own_device

    return own_device(device)


def run_all(
    values: dict[str, Any], sets: Sequence[Item], size: str | None, device: str | None, dtype: str | None, offload: str,
    out: Path, pipe: Any = None, task: Callable[[Any], Task] | None = None,
) -> None:  # fmt: skip
    """Draw, measure and report a run; `task` makes of a pipeline how its items are drawn, style sets if not given."""
    from ..evals.runs.config import RunConfig
    from .options import size_of

    config = RunConfig(**values, **size_of(size))
    with run_folder(out), keeping(f"what is done is kept in {out}; the same command goes on"):
        _draw(config, sets, device, dtype, offload, out, pipe, task)


def _draw(
    config: RunConfig, sets: Sequence[Item], device: str | None, dtype: str | None, offload: str, out: Path,
    pipe: Any, task: Callable[[Any], Task] | None,
) -> None:  # fmt: skip
    from ..evals.metrics.kinds import metrics as named
    from ..evals.runs.run import Run

    device, edits = own(device), config.kind == "edit"
    measures = named(config.metrics, device, "edit" if edits else "set")
    pipe = pipe or load_model(config.model, device, dtype, offload)
    run = Run(pipe, config, sets, measures, out, task(pipe) if task else None)
    if run.state.is_main_process:
        _say_begun(run)
    with Bar("edits x methods" if edits else "sets x methods") as step:
        rows = run.run(step)
        step(run.items, run.items, 0.0)
    if not run.state.is_main_process:
        return
    failed = [row for row in rows.values() if row.failed]
    if failed:
        first = failed[0]
        text = f"{len(failed)} of {run.items} failed, the first: {first.arm}, {first.set}: {first.failed}"
        console.print(f"{text}; the same command tries them again", style="red", highlight=False, markup=False)
    write(out, None, None)


def write(run: Path, against: str | None, rows: int | None) -> None:
    """Write a run's report and say where it is."""
    from ..evals.runs.report import write_report

    for path in write_report(run, against, rows):
        console.print(str(path), highlight=False, soft_wrap=True)


def _say_begun(run: Run) -> None:
    done = sum(row.failed is None for row in run.rows().values())
    what = "edits" if run.config.kind == "edit" else "sets"
    text = f"{len(run.sets)} {what}, {len(run.config.arms)} methods, {run.state.num_processes} process(es)"
    console.print(f"{text}; {done} of {run.items} are done already" if done else text, highlight=False)
