"""`attnctrl embedded`: rebuild the embedded world and models, judge them, look at them (extra `train`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from attnctrl.embedded import _WEIGHTS, CACHE, MODELS, judging_cli
from attnctrl.errors import ControlError

app = typer.Typer(help=__doc__, no_args_is_help=True)
Cache = Annotated[Path, typer.Option("--artwork", help="The artwork cache, an npz.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of rendered pictures, a folder a world.")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of the training run.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in names:
            raise ControlError(f"{value!r} is unknown; choose {', '.join(names)}")
        return value

    return check


Model = Annotated[str, typer.Argument(help=f"{' or '.join(MODELS)}.", callback=_one_of(MODELS))]


@app.callback()
def _needs_extras() -> None:
    for module in ("cv2", "resvg_py", "efficientnet_lite_pytorch"):
        if importlib.util.find_spec(module) is None:
            raise ControlError(f"{module} is not installed; pip install 'attnctrl[train,eval]'")


def run_folder(model: str, run: Path | None) -> Path:
    """A model's own folder in the cache unless one is named."""
    return run or CACHE / "runs" / model


@app.command("artwork")
def build_artwork(packages: Path = CACHE / "npm", out: Path = CACHE / "artwork.npz") -> None:
    """Fetch the artwork packages with `npm pack` where missing and render the subjects."""
    from attnctrl.embedded import artwork

    artwork.fetch(packages)
    typer.echo(artwork.build(packages, out))


@app.command("render")
def render_pictures(
    out: Annotated[Path, typer.Argument(help="Folder to fill.")],
    world: Annotated[
        str,
        typer.Option(help="first, wider, paired or whole.", callback=_one_of(("first", "wider", "paired", "whole"))),
    ] = "whole",
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
    recipe: Annotated[Path | None, typer.Option(help="A JSON recipe; None: the shipped one.", exists=True)] = None,
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


@app.command("codec")
def measure_autoencoder(
    photographs: Annotated[Path | None, typer.Option(help="A folder of photographs to measure beside.")] = None,
    cache: Cache = CACHE / "artwork.npz",
) -> None:
    """Say how well the shipped autoencoder restores held pictures of the world, and photographs: PSNR in dB."""
    from diffusers import AutoencoderKL

    from attnctrl.embedded import autoencoder, dataset
    from attnctrl.embedded.latents import PatchCode

    vae = AutoencoderKL.from_pretrained(_WEIGHTS / MODELS[0] / "vae")
    code = PatchCode.load(_WEIGHTS / MODELS[0] / "code.npz")
    typer.echo({"world": autoencoder.measure(vae, code, dataset.held_pictures(cache, 128))})
    if photographs:
        squares = dataset.photographs(photographs, each=16)
        typer.echo({f"{len(squares)} squares": autoencoder.measure(vae, code, squares)})


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
    if not (folder / "checkpoint.pt").exists():
        raise ControlError(f"{folder} holds no training run; name one with --run")
    if out and out.exists() and not out.is_dir():
        raise ControlError(f"--out {out} is a file; name a folder")
    typer.echo(export_run(folder, out or _WEIGHTS / model, vae))
    if curve:
        typer.echo(loss_curve(folder, curve))


app.command("judge")(judging_cli.judge)
app.command("subjects")(judging_cli.subjects)
app.command("eval")(judging_cli.evaluate)
app.command("tables")(judging_cli.tables)


@app.command("sheet")
def world_sheet(
    out: Path, cache: Cache = CACHE / "artwork.npz", subjects: str = "fox,butterfly,rose,car,mushroom,house,star,violin"
) -> None:
    """Draw true pictures, a row a style and a column a subject."""
    from attnctrl.embedded import artwork
    from attnctrl.embedded.scenes import SUBJECT_NAMES
    from attnctrl.embedded.sheet import world

    chosen = tuple(subjects.split(","))
    for name in chosen:
        _one_of(SUBJECT_NAMES)(name)
    typer.echo(world(out, artwork.load(cache), chosen))
