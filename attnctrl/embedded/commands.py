"""`attnctrl embedded`: rebuild the embedded world and models, judge them, look at them (extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctrl.embedded import _WEIGHTS, MODELS, artwork, judging_cli

app = typer.Typer(help=__doc__, no_args_is_help=True)
CACHE = artwork.CACHE
Cache = Annotated[Path, typer.Option("--artwork", help="The artwork cache, an npz.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of rendered pictures, a folder a world.")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of the training run.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Model = Annotated[str, typer.Argument(help=f"{' or '.join(MODELS)}.")]


def run_folder(model: str, run: Path | None) -> Path:
    """A model's own folder in the cache unless one is named."""
    return run or CACHE / "runs" / model


@app.command("artwork")
def build_artwork(packages: Path = CACHE / "npm", out: Path = CACHE / "artwork.npz") -> None:
    """Fetch the artwork packages with `npm pack` where missing and render the subjects."""
    artwork.fetch(packages)
    typer.echo(artwork.build(packages, out))


@app.command("render")
def render_pictures(
    out: Annotated[Path, typer.Argument(help="Folder to fill.")],
    world: Annotated[str, typer.Option(help="first, wider or whole.")] = "whole",
    cache: Cache = CACHE / "artwork.npz",
    count: int = 40_000,
    seed: int = 0,
) -> None:
    """Render seeded scenes of a world, with captions."""
    from attnctrl.embedded import dataset
    from attnctrl.embedded.scenes import WORLDS

    dataset.build(out, cache, count, seed, world=WORLDS[world])


@app.command("train")
def train_transformer(
    model: Model,
    recipe: Annotated[Path | None, typer.Option(help="A JSON recipe; None: the shipped one.")] = None,
    run: RunFolder = None,
    data: Data = CACHE / "pictures",
    cache: Cache = CACHE / "artwork.npz",
    start: Annotated[Path | None, typer.Option(help="A run or a model folder whose weights to start from.")] = None,
) -> None:
    """Train a model by its recipe, or go on where its run was stopped; missing pictures are rendered first."""
    from attnctrl.embedded.training import RECIPES, Run, TrainConfig

    text = (recipe or RECIPES / f"{model}.json").read_text()
    Run(run_folder(model, run), data, cache, TrainConfig.model_validate_json(text), start).train()


@app.command("vae")
def train_autoencoder(
    pictures: Annotated[Path, typer.Argument(help="A folder that `render` filled.")],
    run: RunFolder = None,
    cache: Cache = CACHE / "artwork.npz",
    minutes: float = 20,
    threads: Threads = 1,
) -> None:
    """Set the encoder and train the decoder for a run's patch code (shared by all models)."""
    from attnctrl.embedded import autoencoder, dataset
    from attnctrl.embedded.latents import PatchCode

    folder = run_folder("tiny-flux", run)
    code = PatchCode.load(folder / "code.npz")
    vae = autoencoder.train(folder, pictures, cache, code, minutes=minutes, threads=threads)
    typer.echo(autoencoder.measure(vae, code, dataset.held_pictures(cache, 256)))


@app.command("export")
def export_pipeline(
    model: Model,
    run: RunFolder = None,
    out: Annotated[Path | None, typer.Option(help="None: the package's own weights.")] = None,
    curve: Annotated[Path | None, typer.Option(help="Draw the loss there, a PNG.")] = None,
    vae: Annotated[Path | None, typer.Option(help="The autoencoder's folder; None: the run's or the shipped.")] = None,
) -> None:
    """Write a run's averaged weights as a diffusers pipeline folder, and its loss curve."""
    from attnctrl.embedded.export import export_run, loss_curve

    folder = run_folder(model, run)
    typer.echo(export_run(folder, out or _WEIGHTS / model, vae))
    if curve:
        typer.echo(loss_curve(folder, curve))


app.command("judge")(judging_cli.judge)
app.command("subjects")(judging_cli.subjects)
app.command("eval")(judging_cli.evaluate)


@app.command("sheet")
def world_sheet(
    out: Path, cache: Cache = CACHE / "artwork.npz", subjects: str = "fox,butterfly,rose,car,mushroom,house,star,violin"
) -> None:
    """Draw true pictures, a row a style and a column a subject."""
    from attnctrl.embedded.sheet import world

    typer.echo(world(out, artwork.load(cache), tuple(subjects.split(","))))
