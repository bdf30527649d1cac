"""`attnctrl edit`: a picture drawn and edited, its region found by words, in a box, or by a mask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ControlError
from .asked import loadable
from .console import Bar, console
from .ending import keeping
from .models import load_model
from .options import size_of

if TYPE_CHECKING:
    from ..control import Control
    from ..pipelines.edits import EditSet
    from ..pipelines.recipe import EditRecipe
    from ..region import Region

METHOD = "consistedit"
_BOX = re.compile(r"[\d.]+(?::[\d.]+){3}")
_MASK = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def edit(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    targets: Annotated[list[str], typer.Argument(help="What it shall show instead; several are several edits.")],
    control: Annotated[
        list[str] | None,
        typer.Option(help=f"An editing method with its settings: {METHOD}:alpha=1 (the default is {METHOD}); or more."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="Where it may change: words of the first prompt, a box left:top:right:bottom in shares of the "
            "picture, or a mask's file; may be given again: all of them. Everywhere if not given."
        ),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Where words begin, 0 to 1 of their attention.")] = None,
    edge: Annotated[float, typer.Option(help="Softness of the region's edge, in tokens.")] = 0.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Lay the first picture's latents over what is outside after every step.")
    ] = False,
    rounds: Annotated[bool, typer.Option("--rounds", help="Each edit is of the one before, not of the first.")] = False,
    compare: Annotated[bool, typer.Option(help="Also draw what each prompt alone makes; one more run each.")] = True,
    model: Annotated[str, typer.Option(help="An embedded model, a diffusers folder or a hub id.")] = "tiny-sd3",
    steps: Annotated[int | None, typer.Option(help="Solver steps; the model's own number if not given.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of the picture's noise.")] = 0,
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or 80x48 (width x height).")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="For classifier-free guidance.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="FLUX: the distilled guidance; SD3: classifier-free guidance.")
    ] = None,
    true_cfg_scale: Annotated[float | None, typer.Option(help="FLUX's classifier-free guidance.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best one here if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[str, typer.Option(help="none, model or sequential: for GPUs with little memory.")] = "none",
    out: Annotated[Path | None, typer.Option(help="A new folder for the result.")] = None,
) -> None:
    """Draw a picture and edit it: another prompt within a region, and the rest as it was."""
    from ..pipelines.checks import check_before, warn_of_doubts
    from ..pipelines.folders import free_folder, reserved
    from ..pipelines.recipe import Change, EditRecipe
    from ..registry import controls_of

    where, controls = region_of(region, threshold, edge), tuple(controls_of(control or [METHOD]))
    if keep and where is None:
        raise ControlError("--keep keeps what lies outside of a region: add --region")
    changes = [
        Change(prompt=one, of=i if rounds else 0, control=controls, region=where, keep=keep)
        for i, one in enumerate(targets)
    ]
    recipe = EditRecipe(
        model=model, prompt=prompt, edits=tuple(changes), seed=seed, num_inference_steps=steps,
        negative_prompt=negative_prompt, guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale, **size_of(size),
    )  # fmt: skip
    said_in(recipe)
    loadable(device, dtype, offload)
    check_before(recipe)
    place = free_folder("edit") if out is None else out
    with reserved(place) as folder, keeping("no picture was written"):
        warn_of_doubts(recipe.model, recipe.said)
        make_edits(load_model(model, device, dtype, offload), recipe, folder, compare)


def make_edits(pipe: Any, recipe: EditRecipe, folder: Path, compare: bool = True) -> EditSet:
    """A recipe of edits run under a bar, and written."""
    from ..pipelines.edits import run_edits, write_edits

    with Bar("steps") as step:
        result = run_edits(pipe, recipe, lambda done, total: step(done, total, 0.0), compare)
    write_edits(result, folder, f"“{recipe.prompt}” edited, seed {recipe.seed}")
    for name in ("sheet.png", "recipe.json"):
        console.print(str(folder / name), highlight=False, soft_wrap=True)
    return result


def region_of(texts: list[str] | None, threshold: float | None, edge: float) -> Region | None:
    """What --region, --threshold and --edge describe: the union of all of them."""
    from functools import reduce
    from operator import or_

    if not texts:
        if threshold is not None or edge:
            raise ControlError("--threshold and --edge are of a region: add --region")
        return None
    return reduce(or_, (_region(text, threshold, edge) for text in texts))


def _region(text: str, threshold: float | None, edge: float) -> Region:
    from ..region import Region

    more: dict[str, Any] = {"edge": edge, **({} if threshold is None else {"threshold": threshold})}
    if _BOX.fullmatch(text.strip()):
        try:
            box = tuple(float(part) for part in text.split(":"))
        except ValueError:
            raise ControlError(f"--region {text}: write left:top:right:bottom, such as 0:0:0.5:1") from None
        return Region(box=box, **more)
    if text.lower().endswith(_MASK):
        return Region(mask=text, **more)
    return Region(words=text, **more)


def said_in(recipe: EditRecipe) -> None:
    """Raise ControlError for a region's words that the picture which is edited does not say, before a model loads."""
    from ..processors.editing import EditControl
    from .attention_cli import said

    prompts = [recipe.prompt, *(one.prompt for one in recipe.edits)]
    for one in recipe.edits:
        own: list[Control] = [control for control in one.control if isinstance(control, EditControl)]
        for region in [one.region, *(control.region for control in own)]:  # type: ignore[attr-defined]
            for words in _words(region):
                said(prompts[one.of], words)


def _words(region: Region | None) -> list[str]:
    if region is None:
        return []
    return [region.words] if region.words else [words for part in region.parts for words in _words(part)]
