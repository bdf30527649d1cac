"""`attnctrl eval edit` and `attnctrl eval masks`: edits with known truth, and words' regions against true masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .asked import asked
from .console import Bar, console
from .eval_run import (
    Baseline,
    Device,
    Dtype,
    First,
    Folder,
    Guidance,
    Methods,
    Metrics,
    Model,
    Negative,
    Offload,
    Seed,
    Size,
    Steps,
    Sweep,
    Threads,
    TrueCfg,
    own,
    run_all,
)  # fmt: skip
from .models import load_model


def edit(
    out: Folder,
    sets: Annotated[
        str, typer.Option("--set", "--sets", help="A .jsonl of edits, PIE-Bench's folder, or the shipped embedded.")
    ] = "embedded",
    methods: Methods = None,
    sweep: Sweep = None,
    baseline: Baseline = None,
    first: First = None,
    model: Model = "tiny-sd3",
    metrics: Metrics = None,
    seed: Seed = 0,
    steps: Steps = None,
    size: Size = None,
    guidance_scale: Guidance = None,
    true_cfg_scale: TrueCfg = None,
    negative_prompt: Negative = None,
    threads: Threads = 1,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
) -> None:
    """Edit every source with every method and measure it; killed at any moment, the same command goes on."""
    asked(
        model, size, device=device, dtype=dtype, offload=offload, num_inference_steps=steps, threads=threads,
        guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale, seed=seed,
    )  # fmt: skip
    from ..evals.edits.reading import read_edits
    from ..evals.metrics.kinds import EDITS
    from ..evals.runs.arms import EDITING, arms
    from ..evals.runs.sets import spread

    found = arms(methods or [EDITING], sweep or (), edits=True)
    chosen = spread(read_edits(sets), first, "edits")
    named = EDITS if metrics is None else tuple(dict.fromkeys(m.strip() for m in metrics.split(",") if m.strip()))
    values: dict[str, Any] = {
        "kind": "edit", "model": model, "sets": sets, "arms": found, "baseline": baseline or found[0].name,
        "metrics": named, "seed": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale, "negative_prompt": negative_prompt, "threads": threads,
    }  # fmt: skip
    truth = any(one.before is not None for one in chosen)
    run_all(values, chosen, size, device, dtype, offload, out, task=partial(_task, truth))


def masks(
    out: Annotated[Path, typer.Option(help="New folder for masks.json, table.md and sheet.png.")],
    artwork: Annotated[
        Path | None, typer.Option(help="The artwork's npz (attnctrl embedded artwork); its usual place if not given.")
    ] = None,
    scenes: Annotated[int, typer.Option(help="True pictures of each kind of word.", min=1)] = 30,
    model: Model = "tiny-sd3",
    seed: Seed = 0,
    steps: Steps = None,
    threads: Threads = 1,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure how words' regions overlap with the true masks of the embedded world, by threshold, blocks and steps."""
    asked(model, None, device=device, dtype=dtype, num_inference_steps=steps, threads=threads, seed=seed)
    import torch

    from ..embedded import artwork as drawings
    from ..evals.edits.masks import measured, write
    from ..evals.edits.scenes import scenes_of
    from ..pipelines.folders import new_folder, refuse_used

    refuse_used(out)
    art = drawings.load(artwork)
    torch.set_num_threads(threads)
    pipe = load_model(model, own(device), dtype, "none")
    cases = scenes_of(scenes, seed)
    with Bar("pictures") as step:
        found = measured(pipe, cases, art, steps, step)
    with new_folder(out) as draft:
        names = write(found, model, draft)
    for name in names:
        console.print(str(out / name), highlight=False, soft_wrap=True)


def _task(truth: bool, pipe: Any) -> Any:
    """How a pipeline draws edits; the judges are loaded where there is truth for them."""
    from ..errors import ControlError

    try:
        from ..evals.edits.drawing import EditTask
        from ..evals.edits.jury import Jury

        return EditTask(pipe, Jury() if truth else None)
    except ImportError as fault:
        raise ControlError(f"the embedded judges need {fault.name}: pip install 'attnctrl[train,eval]'") from fault
