"""Command line of the embedded world: artwork, render, train, vae, export, judge, subjects, sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctrl.embedded import _WEIGHTS, artwork

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
CACHE = artwork.CACHE
Cache = Annotated[Path, typer.Option("--artwork", help="The artwork cache, an npz.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of rendered pictures.")]
RunFolder = Annotated[Path, typer.Option("--run", help="Folder of the training run.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


@app.command("artwork")
def build_artwork(packages: Path = CACHE / "npm", out: Path = CACHE / "artwork.npz") -> None:
    """Fetch the artwork packages with `npm pack` where missing and render the subjects."""
    artwork.fetch(packages)
    typer.echo(artwork.build(packages, out))


@app.command("render")
def render_pictures(
    data: Data = CACHE / "pictures",
    cache: Cache = CACHE / "artwork.npz",
    count: int = 60_000,
    seed: int = 0,
    first: Annotated[bool, typer.Option("--first", help="Only the part that tiny-flux learns first.")] = False,
) -> None:
    """Render seeded scenes for training."""
    from attnctrl.embedded import dataset
    from attnctrl.embedded.scenes import FIRST, WHOLE

    dataset.build(data, cache, count, seed, world=FIRST if first else WHOLE)


@app.command("train")
def train_transformer(
    data: Data = CACHE / "pictures",
    run: RunFolder = CACHE / "run",
    minutes: float = 68,
    batch: int = 48,
    threads: Threads = 2,
    start: Path | None = None,
    easy: Annotated[float, typer.Option(help="First share of the run, on single objects only.")] = 0.4,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.999,
) -> None:
    """Train the transformer and the text encoders, or go on with a run; `start` gives a new run another's weights."""
    from attnctrl.embedded.training import Run, TrainConfig

    config = TrainConfig(minutes=minutes, batch=batch, threads=threads, easy=easy, ema=ema)
    Run(run, data, config, start).train()


@app.command("vae")
def train_autoencoder(
    data: Data = CACHE / "pictures",
    run: RunFolder = CACHE / "run",
    cache: Cache = CACHE / "artwork.npz",
    minutes: float = 20,
    threads: Threads = 1,
) -> None:
    """Set the encoder and train the decoder for a run's patch code."""
    from attnctrl.embedded import autoencoder, dataset
    from attnctrl.embedded.latents import PatchCode

    code = PatchCode.load(run / "code.npz")
    vae = autoencoder.train(run, data, cache, code, minutes=minutes, threads=threads)
    typer.echo(autoencoder.measure(vae, code, dataset.held_pictures(cache, 256)))


@app.command("export")
def export_pipeline(
    run: RunFolder = CACHE / "run",
    out: Path = _WEIGHTS / "tiny-flux",
    curve: Path | None = None,
    vae_run: Path | None = None,
) -> None:
    """Write a run's averaged weights as a FluxPipeline folder, and its loss curve; `vae_run` has the VAE."""
    from attnctrl.embedded.export import export_run, loss_curve

    typer.echo(export_run(run, out, vae_run))
    if curve:
        typer.echo(loss_curve(run, curve))


@app.command("judge")
def train_judge(
    cache: Cache = CACHE / "artwork.npz",
    out: Path = _WEIGHTS / "judge.safetensors",
    minutes: float = 10,
    threads: Threads = 1,
) -> None:
    """Train the judge on its own artwork and calibrate it on the generator's."""
    from attnctrl.embedded.judge_training import train

    typer.echo(train(cache, out, minutes=minutes, threads=threads))


@app.command("subjects")
def train_subject_judge(
    cache: Cache = CACHE / "artwork.npz", out: Path = _WEIGHTS / "subjects.safetensors", count: int = 3000
) -> None:
    """Fit the subject judge on its own artwork and calibrate it on the generator's."""
    from attnctrl.embedded.subjects import train

    typer.echo(train(cache, out, count))


@app.command("sheet")
def world_sheet(
    out: Path, cache: Cache = CACHE / "artwork.npz", subjects: str = "fox,butterfly,rose,car,mushroom,house,star,violin"
) -> None:
    """Draw true pictures, a row a style and a column a subject."""
    from attnctrl.embedded.sheet import world

    typer.echo(world(out, artwork.load(cache), tuple(subjects.split(","))))


if __name__ == "__main__":
    app()
