"""`attnctrl eval`: batch evaluations of style consistency and of heads, their reports, and what changed between two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..embedded import MODELS
from ..errors import ControlError
from ..pipelines.facts import facts_of
from ..pipelines.folders import run_folder
from ..pipelines.presets import preset_before
from .asked import asked
from .console import Bar, console, lines_of
from .ending import keeping
from .models import load_model

if TYPE_CHECKING:
    from ..evals.runs.config import RunConfig
    from ..evals.runs.run import Run
    from ..evals.runs.sets import StyleSet

app = typer.Typer(help=__doc__, no_args_is_help=True)
Folder = Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")]
Model = Annotated[str, typer.Option(help="An embedded model, a diffusers folder or a hub id.")]
Metrics = Annotated[
    str | None,
    typer.Option(help="Metrics by comma (attnctrl eval metrics lists them); the model's usual ones if not given."),
]
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


@app.command()
def style(
    out: Folder,
    sets: Annotated[str | None, typer.Option("--prompts", "--sets", help="A .jsonl of sets, or shipped ones.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="By comma: plain, alignedgen:strength=0.3, recipe.json ...")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="strength=0.1,0.3,1: one arm a value; may be repeated.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The method that others are compared with; else the first.")
    ] = None,
    first: Annotated[int | None, typer.Option(help="Only so many of the sets, spread evenly.")] = None,
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
    _run(values, chosen, size, device, dtype, offload, out)


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

        pipe = load_model(model, _own(device), dtype, offload)
        found = head_arms(pipe, model, heads, random_sets, seed, strength, u)
        values: dict[str, Any] = {
            "kind": "heads", "model": model, "sets": prompts.name, "arms": found, "baseline": found[0].name,
            "metrics": tuple(dict.fromkeys(objective)), "seed": seed, "num_inference_steps": steps,
            "guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale, "negative_prompt": negative_prompt,
            "threads": threads,
        }  # fmt: skip
        _run(values, prompt_sets(lines_of(prompts), repeats), size, device, dtype, offload, out, pipe)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    against: Annotated[str | None, typer.Option(help="Another method to compare with than the run's baseline.")] = None,
    rows: Annotated[int | None, typer.Option(help="How many sets the page shows, worst first.", min=1)] = None,
) -> None:
    """Write items.csv, summary.json, costs.json, table.md and report.html, one self-contained page, into the run."""
    from ..evals.runs.report import write_report

    for path in write_report(run, against, rows):
        console.print(str(path), highlight=False, soft_wrap=True)


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


def _own(device: str | None) -> str | None:
    from ..evals.ledger import own_device

    return own_device(device)


def _run(
    values: dict[str, Any], sets: tuple[StyleSet, ...], size: str | None, device: str | None, dtype: str | None,
    offload: str, out: Path, pipe: Any = None,
) -> None:  # fmt: skip
    from ..evals.runs.config import RunConfig
    from .options import size_of

    config = RunConfig(**values, **size_of(size))
    with run_folder(out), keeping(f"what is done is kept in {out}; the same command goes on"):
        _draw(config, sets, device, dtype, offload, out, pipe)


def _draw(
    config: RunConfig, sets: tuple[StyleSet, ...], device: str | None, dtype: str | None, offload: str, out: Path,
    pipe: Any,
) -> None:  # fmt: skip
    from ..evals.metrics.kinds import metrics as named
    from ..evals.runs.run import Run

    device = _own(device)
    measures = named(config.metrics, device)
    pipe = pipe or load_model(config.model, device, dtype, offload)
    run = Run(pipe, config, sets, measures, out)
    if run.state.is_main_process:
        _say_begun(run)
    with Bar("sets x methods") as step:
        rows = run.run(step)
        step(run.items, run.items, 0.0)
    if not run.state.is_main_process:
        return
    failed = [row for row in rows.values() if row.failed]
    if failed:
        first = failed[0]
        text = f"{len(failed)} of {run.items} failed, the first: {first.arm}, {first.set}: {first.failed}"
        console.print(f"{text}; the same command tries them again", style="red", highlight=False, markup=False)
    report(out, None, None)


def _say_begun(run: Run) -> None:
    done = sum(row.failed is None for row in run.rows().values())
    text = f"{len(run.sets)} sets, {len(run.config.arms)} methods, {run.state.num_processes} process(es)"
    console.print(f"{text}; {done} of {run.items} are done already" if done else text, highlight=False)
