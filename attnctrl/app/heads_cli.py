"""`attnctrl heads`: search heads for an objective, check a set on held-out prompts, draw the atlas, list presets."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ControlError
from ..pipelines.checks import warn_of_doubts, warn_of_words
from ..pipelines.folders import reserved, run_folder
from ..pipelines.presets import preset_before
from .asked import AskedHeads, asked
from .console import Bar, console, duration, lines_of, numbers_of
from .ending import keeping
from .models import load_model

if TYPE_CHECKING:
    from ..evals.heads.search import Round, Search

app = typer.Typer(help=__doc__, no_args_is_help=True)
Model = Annotated[str, typer.Option(help="An embedded model, a diffusers folder or a hub id.")]
Objectives = Annotated[list[str], typer.Option("--objective", help="What to gain: color:blue, contrast, quality ...")]
Prompts = Annotated[Path, typer.Option(help="Prompts, one a line.")]
Seeds = Annotated[str, typer.Option(help="Seeds: 0-4 or 0,3,7.")]
Strength = Annotated[float, typer.Option(help="w, the weight of (plain - perturbed).")]
Degree = Annotated[float, typer.Option("--u", help="How far attention is perturbed: 0 off, 1 wholly.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps; the model's own number if not given.")]
Size = Annotated[str | None, typer.Option(help="Pixels: 64 or 80x48 (width x height).")]
Batch = Annotated[int, typer.Option(help="Pictures computed together.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best one here if not given.")]
Threads = Annotated[int, typer.Option(help="CPU threads a process; part of the run, floating point depends on it.")]


@app.command()
def search(
    objective: Objectives,
    prompts: Prompts,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")],
    model: Model = "tiny-sd3",
    seeds: Seeds = "0",
    rounds: Annotated[int, typer.Option(help="Rounds; each adds top-k heads.")] = 5,
    top_k: Annotated[int, typer.Option(help="Heads that a round adds.")] = 3,
    blocks: Annotated[str, typer.Option(help="Blocks whose heads are tried.")] = "all",
    strength: Strength = 3.0,
    u: Degree = 1.0,
    cfg: Annotated[bool, typer.Option(help="Search with the model's own guidance; the paper's is off.")] = False,
    halving: Annotated[bool, typer.Option(help="Drop the worse half of the candidates on few pictures first.")] = False,
    steps: Steps = None,
    size: Size = None,
    batch_size: Batch = 16,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Find the heads whose perturbation gains most of an objective (HeadHunter); several objectives share a round."""
    asked(
        model, size, kind=AskedHeads, objectives=objective, prompts=prompts, seeds=seeds, blocks=blocks,
        device=device, rounds=rounds, top_k=top_k, strength=strength, u=u, num_inference_steps=steps,
        batch_size=batch_size, threads=threads,
    )  # fmt: skip
    with run_folder(out), keeping(f"what is done is kept in {out}; the same command goes on"):
        warn_of_words(model, lines_of(prompts))
        from ..evals.heads.search import Search, SearchConfig
        from ..evals.ledger import own_device
        from ..evals.objectives import Models
        from ..evals.objectives import objective as named
        from ..where import Where

        config = SearchConfig(
            model=model, objectives=tuple(objective), prompts=lines_of(prompts), seeds=numbers_of(seeds),
            rounds=rounds, top_k=top_k, where=Where(blocks=blocks), strength=strength, u=u, cfg=cfg, halving=halving,
            num_inference_steps=steps, batch_size=batch_size, threads=threads, **_size(size),
        )  # fmt: skip
        device = own_device(device)
        shared = Models(device)
        objectives = {text: named(text, device, shared) for text in objective}
        pipe = load_model(model, device)
        hunt = Search(pipe, config, objectives, out)
        if hunt.state.is_main_process:
            _say_budget(hunt.expected(), hunt.measure(), len(hunt.ledger.done), hunt.state.num_processes)
        with Bar("pictures") as step:
            found = hunt.run(step)
            step(hunt.drawn, hunt.drawn, 0.0)
        if hunt.state.is_main_process:
            _write(hunt, found)


@app.command()
def check(
    preset: Annotated[str, typer.Argument(help="A shipped preset's name, a preset's JSON, or heads: L1H0,L2H3.")],
    objective: Annotated[str, typer.Option(help="What to measure; None: the one that a searched preset names.")],
    prompts: Prompts,
    model: Model = "tiny-sd3",
    seeds: Seeds = "100-103",
    strength: Annotated[float | None, typer.Option(help="w; None: the preset's.")] = None,
    u: Annotated[float | None, typer.Option(help="u; None: the preset's.")] = None,
    cfg: Annotated[bool, typer.Option(help="With the model's own guidance.")] = True,
    random_sets: Annotated[int, typer.Option(help="Random sets of as many heads, for comparison.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Write the preset with its measured effect there, a JSON.")] = None,
    steps: Steps = None,
    size: Size = None,
    batch_size: Batch = 16,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Measure what heads do to pictures that no search has seen, with an interval and beside random heads."""
    asked(
        model, size, objectives=(objective,), prompts=prompts, seeds=seeds, device=device, random_sets=random_sets,
        num_inference_steps=steps, batch_size=batch_size, threads=threads,
    )  # fmt: skip
    preset_before(preset, model, strength, u)
    if out is not None and out.suffix != ".json":
        raise ControlError(f"--out {out}: a preset is a JSON file; name it NAME.json")
    with nullcontext() if out is None else reserved(out, file=True), keeping("nothing was written"):
        _check(preset, objective, prompts, model, seeds, strength, u, cfg, random_sets, out, steps, size, batch_size,
               device, threads)  # fmt: skip


def _check(
    preset: str, objective: str, prompts: Path, model: str, seeds: str, strength: float | None, u: float | None,
    cfg: bool, random_sets: int, out: Path | None, steps: int | None, size: str | None, batch_size: int,
    device: str | None, threads: int,
) -> None:  # fmt: skip
    import torch

    from ..evals.heads.check import effect
    from ..evals.heads.drawing import Drawing, pool
    from ..evals.objectives import objective as named
    from ..pipelines.presets import preset_of, write_preset
    from ..where import Where

    torch.set_num_threads(threads)
    pipe = load_model(model, device)
    given = preset_of(preset, model, pipe, strength, u)
    measure, pairs = named(objective, device), [(p, s) for s in numbers_of(seeds) for p in lines_of(prompts)]
    sizes = _size(size)
    drawing = Drawing(given.strength, given.u, cfg, batch_size, steps, sizes.get("height"), sizes.get("width"))
    with Bar("sets of heads") as step:
        found = effect(
            pipe, given.heads, measure, pairs, drawing, pool(pipe, Where()), random_sets,
            progress=lambda done, total: step(done, total, 0.0),
        )  # fmt: skip
    low, high = found.difference[1:]
    console.print(f"{objective}: plain {found.plain:.4g}, guided {found.guided:.4g} on {found.pictures} pictures")
    console.print(f"difference {found.difference[0]:.4g} [{low:.4g}, {high:.4g}]", highlight=False)
    if found.random_heads:
        mean, low, high = found.random_heads
        console.print(f"random heads: {mean:.4g} [{low:.4g}, {high:.4g}] over {random_sets} sets", highlight=False)
    if out:
        measured = {"name": out.stem, "effect": found, "status": "measured"}
        console.print(str(write_preset(given.model_copy(update=measured), out)))


@app.command()
def atlas(
    objective: Objectives,
    prompt: Annotated[str, typer.Option(help="What every picture shows.")],
    out: Annotated[Path, typer.Option(help="Folder of the atlas; the same command goes on with it.")],
    model: Model = "tiny-sd3",
    seed: Annotated[int, typer.Option(help="The seed of every picture's noise.")] = 0,
    blocks: Annotated[str, typer.Option(help="Blocks whose heads are drawn.")] = "all",
    strength: Strength = 3.0,
    u: Degree = 1.0,
    cfg: Annotated[bool, typer.Option(help="With the model's own guidance.")] = False,
    steps: Steps = None,
    size: Size = None,
    batch_size: Batch = 16,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Draw what every single head does to one picture: heat maps, and a page with all pictures (atlas.html)."""
    asked(
        model, size, kind=AskedHeads, objectives=objective, blocks=blocks, words={"--prompt": prompt},
        device=device, seed=seed,
        strength=strength, u=u, num_inference_steps=steps, batch_size=batch_size, threads=threads,
    )  # fmt: skip
    with run_folder(out), keeping(f"what is done is kept in {out}; the same command goes on"):
        warn_of_doubts(model, (prompt,))
        from ..evals.heads.atlas import AtlasConfig, AtlasRun
        from ..evals.heads.atlas_page import write_atlas
        from ..evals.ledger import own_device
        from ..evals.objectives import Models
        from ..evals.objectives import objective as named
        from ..where import Where

        names = tuple(dict.fromkeys(objective))
        config = AtlasConfig(
            model=model, objectives=names, prompt=prompt, seed=seed, where=Where(blocks=blocks), strength=strength, u=u,
            cfg=cfg, num_inference_steps=steps, batch_size=batch_size, threads=threads, **_size(size),
        )  # fmt: skip
        device = own_device(device)
        shared = Models(device)
        objectives = {text: named(text, device, shared) for text in names}
        run = AtlasRun(load_model(model, device), config, objectives, out)
        if run.state.is_main_process:
            begun = f"; {len(run.ledger.done)} batches are done already" if run.ledger.done else ""
            console.print(f"{len(run.heads)} heads, {run.expected} pictures{begun}", highlight=False)
        with Bar("pictures") as step:
            found = run.run(step)
            step(run.expected, run.expected, 0.0)
        if run.state.is_main_process:
            for path in write_atlas(found, run.ledger):
                console.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def presets() -> None:
    """List the presets that come with the package."""
    from ..pipelines.presets import read_preset, shipped

    for name in shipped():
        one = read_preset(name)
        console.print(f"[bold]{name}[/]  {one.model}: {one.heads}, u {one.u:g}, w {one.strength:g}; {one.status}")


def _write(hunt: Search, found: dict[str, list[Round]]) -> None:
    import json

    from ..evals.heads.search import as_json
    from ..pipelines.presets import HeadPreset, described, write_preset

    config = hunt.config
    hunt.ledger.write("rounds.json", json.dumps(as_json(found), indent=1) + "\n")
    for name in found:
        heads, gain, error = hunt.best(name)
        how = f"HeadHunter, up to {config.rounds} rounds of {config.top_k} of {len(hunt.heads)} heads"
        source = f"{how}, {len(config.pairs)} pictures a set, for {name}; gain there {gain:.4g} +- {error:.2g}"
        preset = HeadPreset(
            name=slug(name), heads=heads, u=config.u, strength=config.strength, source=source,
            status="searched, not yet checked", **described(hunt.pipe, config.model),
        )  # fmt: skip
        path = write_preset(preset, hunt.ledger.folder / "presets" / f"{slug(name)}.json")
        console.print(f"{name}: {heads}, gain {gain:.4g} -> {path}", highlight=False, soft_wrap=True)


def slug(name: str) -> str:
    """A file name for an objective."""
    kept = "".join(c if c.isalnum() else "-" for c in name.lower())
    return "-".join(part for part in kept.split("-") if part)


def _say_budget(pictures: int, seconds: float, begun: int, processes: int) -> None:
    text = f"up to {pictures} pictures at {seconds:.2g} s, about {duration(pictures * seconds / processes)}"
    console.print(f"{text}; {begun} batches are done already" if begun else text, highlight=False)


def _size(text: str | None) -> dict[str, int]:
    from .options import size_of

    return size_of(text)
