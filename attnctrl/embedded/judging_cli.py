"""Commands of the judges: train them, and evaluate a model with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctrl.embedded import _WEIGHTS
from attnctrl.embedded import CACHE as FOLDER

Cache = Annotated[Path, typer.Option("--artwork", help="The artwork cache, an npz.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
CACHE = FOLDER / "artwork.npz"


def judge(
    cache: Cache = CACHE,
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = _WEIGHTS / "judge.safetensors",
    minutes: Annotated[float, typer.Option(help="Time to train, after the pictures are drawn.")] = 20,
    threads: Threads = 1,
) -> None:
    """Train the style judge on the judges' artwork and calibrate it on the generator's."""
    from attnctrl.embedded.judge_training import train

    typer.echo(train(cache, out, minutes=minutes, threads=threads))


def subjects(
    cache: Cache = CACHE,
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = _WEIGHTS / "subjects.safetensors",
    count: Annotated[int, typer.Option(help="Scenes to learn from.")] = 12_000,
    threads: Threads = 1,
) -> None:
    """Fit the subject judge on the judges' artwork and calibrate it on the generator's."""
    from attnctrl.embedded.subject_training import train

    typer.echo(train(cache, out, count, threads=threads)["right"])


def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name or a pipeline folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the tables and sheets.")],
    per: Annotated[int, typer.Option(help="Pictures of each shown (subject, style) pair.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the prompts and the pictures.")] = 0,
    cache: Cache = CACHE,
    threads: Threads = 1,
) -> None:
    """Draw an embedded model's pictures, judge them, and write tables and sheets."""
    import torch

    from attnctrl.embedded.evaluation import evaluate as run

    torch.set_num_threads(threads)
    run(model, out, per, seed, cache)
    typer.echo((out / "evaluation.md").read_text())


def tables(
    docs: Annotated[Path, typer.Option(help="The docs' folder: embedded-models.md, evaluation/MODEL.")] = Path("docs"),
) -> None:
    """Write the aims of both models' evaluations into the docs."""
    from attnctrl.embedded import MODELS, aims

    aims.renew(docs / "embedded-models.md", [docs / "evaluation" / model for model in MODELS])
