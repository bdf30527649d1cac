"""`attnctrl eval`: batch evaluations of style consistency, of edits and of heads, their reports, and what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..embedded import MODELS
from ..errors import ControlError
from ..pipelines.facts import facts_of
from ..pipelines.folders import run_folder
from ..pipelines.presets import preset_before
from .asked import asked
from .console import console, lines_of
from .ending import keeping
from .eval_edit_cli import edit, masks
from .eval_run import (
    Baseline,
    Batch,
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
    write,
)  # fmt: skip
from .models import load_model

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.command()(edit)
app.command()(masks)


@app.command()
def style(
    out: Folder,
    sets: Annotated[str | None, typer.Option("--prompts", "--sets", help="A .jsonl of sets, or shipped ones.")] = None,
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
    batch_size: Batch = 8,
    threads: Threads = 1,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
) -> None:
    """Draw every set with every method and measure them; killed at any moment, the same command goes on."""
    asked(
        model, size, device=device, dtype=dtype, offload=offload, num_inference_steps=steps, batch_size=batch_size,
        threads=threads, guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale, seed=seed,
        words={"--negative-prompt": negative_prompt},
    )  # fmt: skip
    from ..evals.runs.arms import arms
    from ..evals.runs.sets import read_sets, spread

    found = arms(methods or ["published"], sweep or ())
    if facts := facts_of(model):
        for arm in found:
            arm.check_model(facts.sites, steps or facts.steps)
    name = ("embedded" if model in MODELS else "published") if sets is None else sets
    chosen = spread(read_sets(name), first)
    values: dict[str, Any] = {
        "kind": "style", "model": model, "sets": name, "arms": found, "baseline": baseline or found[0].name,
        "metrics": _metrics(metrics, model), "seed": seed, "num_inference_steps": steps,
        "guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale, "negative_prompt": negative_prompt,
        "batch_size": batch_size, "threads": threads,
    }  # fmt: skip
    run_all(values, chosen, size, device, dtype, offload, out)


@app.command()
def heads(
    heads: Annotated[list[str], typer.Argument(help="Presets, their .json, or heads: L1H0,L2H3.")],
    prompts: Annotated[Path, typer.Option(help="Prompts, one a line.")],
    objective: Annotated[list[str], typer.Option(help="What is measured: color:blue, contrast ... May be repeated.")],
    out: Folder,
    repeats: Annotated[int, typer.Option(help="How often every prompt is drawn, each time from another seed.")] = 1,
    random_sets: Annotated[int, typer.Option(help="Random sets of as many heads beside each.")] = 4,
    strength: Annotated[float | None, typer.Option(help="w; the preset's if not given.")] = None,
    u: Annotated[float | None, typer.Option("--u", help="u; the preset's if not given.")] = None,
    model: Model = "tiny-sd3",
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
    """Draw prompts plain, guided by sets of heads, and by random ones; measured and reported like style sets."""
    asked(
        model, size, objectives=objective, prompts=prompts, device=device, dtype=dtype, offload=offload,
        num_inference_steps=steps, threads=threads, guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale,
        words={"--negative-prompt": negative_prompt}, seed=seed, repeats=repeats, random_sets=random_sets,
        strength=strength, u=u,
    )  # fmt: skip
    for one in heads:
        preset_before(one, model, strength, u)
        if heads.count(one) > 1:
            raise ControlError(f"the heads {one} are given twice")
    with run_folder(out), keeping("nothing was written"):
        from ..evals.runs.heads import head_arms, prompt_sets

        pipe = load_model(model, own(device), dtype, offload)
        found = head_arms(pipe, model, heads, random_sets, seed, strength, u)
        values: dict[str, Any] = {
            "kind": "heads", "model": model, "sets": prompts.name, "arms": found, "baseline": found[0].name,
            "metrics": tuple(dict.fromkeys(objective)), "seed": seed, "num_inference_steps": steps,
            "guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale, "negative_prompt": negative_prompt,
            "threads": threads,
        }  # fmt: skip
        run_all(values, prompt_sets(lines_of(prompts), repeats), size, device, dtype, offload, out, pipe)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    against: Annotated[str | None, typer.Option(help="Another method to compare with than the run's baseline.")] = None,
    rows: Annotated[int | None, typer.Option(help="How many sets the page shows, worst first.", min=1)] = None,
) -> None:
    """Write items.csv, summary.json, costs.json, table.md and report.html, one self-contained page, into the run."""
    write(run, against, rows)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A run.")],
    after: Annotated[Path, typer.Argument(help="Another one with some of the same methods and sets.")],
) -> None:
    """Compare two runs set by set: every method and metric that both have, with paired intervals."""
    from ..evals.runs.diff import compared, table

    console.print(table(compared(before, after)), highlight=False, soft_wrap=True)


@app.command()
def metrics() -> None:
    """List the metrics."""
    from ..evals.metrics.kinds import FRECHET, KINDS

    for name, kind in KINDS.items():
        console.print(f"[bold]{name}[/]{':' + kind.argument if kind.argument else ''}  {kind.says}", highlight=False)
    console.print(f"[bold]{FRECHET}[/]  of a whole method: distance from the baseline's pictures", highlight=False)
    console.print("and every objective of `attnctrl heads search`, its mean over a set", highlight=False)


def _metrics(text: str | None, model: str) -> tuple[str, ...]:
    from ..evals.metrics.kinds import EMBEDDED, GENERAL

    if text is None:
        return EMBEDDED if model in MODELS else GENERAL
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
