"""The generate task: run a recipe, write its pictures, and say whether a replay came out the same."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from ..errors import ControlError
from ..given import shown
from ..processors.attaching import host_of
from .checks import check_fits, warn_of_doubts
from .facts import facts_in, model_of
from .folders import new_folder as new_folder
from .folders import refuse_used as refuse_used
from .mixin import ControlledPipeline
from .panorama import panorama
from .preview import Preview
from .recipe import PNG_KEY, Environment, Made, Recipe
from .sheets import SheetRow, contact_sheet

RECIPE, SHEET = "recipe.json", "sheet.png"
STARTED = {"strength", "control_image"}
"""Arguments of the pipelines that cannot do without a picture."""
INSTEAD = {"true_cfg_scale": "its classifier-free guidance is guidance_scale"}
Progress = Callable[[int, int], None]
Watch = Callable[[Sequence[int], Callable[[], list[Image.Image]]], None]


@dataclass(frozen=True)
class PictureSet:
    """The pictures of a finished recipe, in the order of its prompts, and the recipe with what was made."""

    pictures: tuple[Image.Image, ...]
    recipe: Recipe


def batches(prompts: int, batch_size: int, shared_first: bool) -> list[list[int]]:
    """Prompt numbers by batch; with `shared_first`, prompt 0 leads every batch."""
    if not shared_first:
        return [list(range(i, min(i + batch_size, prompts))) for i in range(0, prompts, batch_size)]
    step = batch_size - 1
    rest = list(range(1, prompts))
    return [[0, *rest[i : i + step]] for i in range(0, max(len(rest), 1), step)]


def generate(
    pipe: ControlledPipeline, recipe: Recipe, progress: Progress | None = None, watch: Watch | None = None
) -> PictureSet:
    """Run a recipe on a loaded pipeline.

    After every solver step progress(done, total) is called, and watch(numbers, look), where `numbers` are of the
    prompts under way and look() decodes what their pictures will be. Raises ControlError when the model cannot run it.
    """
    if not isinstance(recipe, Recipe):
        raise ControlError(f"generate takes a Recipe, not {shown(recipe)}; make one, or read_recipe(FILE)")
    if not isinstance(pipe, ControlledPipeline):
        raise ControlError(f"generate takes a pipeline of attnctrl.load(MODEL), not {shown(pipe)}")
    check_arguments(pipe, recipe)
    check_size(pipe, recipe.height, recipe.width)
    check_fits(recipe, facts_in(pipe))
    warn_of_doubts(model_of(pipe), recipe.prompts)
    if recipe.panorama is not None:
        wide = panorama(
            pipe, recipe.prompts, overlap=recipe.panorama, seed=recipe.seed, control=recipe.control, stepped=progress,
            **recipe.arguments(),
        )  # fmt: skip
        return finished(pipe, recipe, [wide])
    leads = any(control.leads for control in recipe.control)
    plan = batches(len(recipe.prompts), recipe.batch_size, leads)
    pictures: dict[int, Image.Image] = {}
    done = 0

    def stepped(run: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        if progress:
            progress(done, run.num_timesteps * len(plan))
        if watch:
            clean = preview.see(tensors["latents"])
            watch(numbers, lambda: preview.pictures(clean))
        return tensors

    numbers: list[int] = []
    preview = Preview(pipe, *_size(pipe, recipe))

    for numbers in plan:
        generators = [torch.Generator("cpu").manual_seed(recipe.seed + i) for i in numbers]
        result = pipe(
            prompt=[recipe.prompts[i] for i in numbers],
            control=recipe.control,
            generator=generators,
            callback_on_step_end=stepped,
            **recipe.arguments(),
        )
        for i, picture in zip(numbers, result.images, strict=True):
            pictures.setdefault(i, picture)
    ordered = tuple(pictures[i] for i in range(len(recipe.prompts)))
    _warn_of_black(ordered, pipe)
    return finished(pipe, recipe, ordered)


def _warn_of_black(pictures: Sequence[Image.Image], pipe: ControlledPipeline) -> None:
    """Warn of pictures that are black all over, as those are that overflowed."""
    black = [i for i, picture in enumerate(pictures) if not picture.convert("L").getextrema()[1]]
    if black:
        way = "a lower guidance or strength" if pipe.dtype == torch.float32 else "dtype float32 or bfloat16"
        warnings.warn(f"picture {', '.join(map(str, black))} is black all over; try {way}", UserWarning, stacklevel=1)


def finished(pipe: ControlledPipeline, recipe: Recipe, pictures: Sequence[Image.Image]) -> PictureSet:
    """Pictures with the recipe that made them, settings and environment written out."""
    made = tuple(
        Made(file=f"{i:02d}.png", prompt=prompt, seed=recipe.seed + i, sha256=pixel_hash(picture))
        for i, (prompt, picture) in enumerate(zip(recipe.pictures, pictures, strict=True))
    )
    settled = {**given_settings(pipe), **recipe.arguments(), "made": made, "environment": environment(pipe)}
    return PictureSet(tuple(pictures), recipe.model_copy(update=settled))


def write_set(result: PictureSet, folder: Path, rows: Sequence[SheetRow] | None = None, heading: str = "") -> None:
    """Write pictures (with the recipe in their metadata), sheet and recipe, all or nothing, to a new folder."""
    recipe = result.recipe
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, recipe.dump())
    with new_folder(folder) as draft:
        for made, picture in zip(recipe.made, result.pictures, strict=True):
            picture.save(draft / made.file, pnginfo=info)
        contact_sheet(rows or [sheet_row(result)], heading).save(draft / SHEET)
        (draft / RECIPE).write_text(recipe.dump(), encoding="utf-8")


def sheet_row(result: PictureSet, title: str | None = None) -> SheetRow:
    """A set as a row of a contact sheet, its reference framed (a picture reference stands first)."""
    recipe = result.recipe
    kinds = " + ".join(control.kind for control in recipe.control) or "plain"
    pictures, captions = list(result.pictures), list(recipe.pictures)
    references = [r for control in recipe.control if not control.off for r in control.references()]
    for reference in reversed(references):
        pictures.insert(0, reference.picture)
        captions.insert(0, f"reference picture {reference.caption}".strip())
    leads = len(references) or int(recipe.panorama is None and any(control.leads for control in recipe.control))
    return SheetRow(title or kinds, pictures, captions, frozenset(range(leads)))


def pixel_hash(picture: Image.Image) -> str:
    """SHA-256 of size and RGB bytes."""
    body = picture.convert("RGB")
    return hashlib.sha256(f"{body.width}x{body.height}:".encode() + body.tobytes()).hexdigest()


def environment(pipe: ControlledPipeline) -> Environment:
    """What this run's floating point depends on."""
    return Environment(
        attnctrl=version("attnctrl"),
        torch=torch.__version__,
        diffusers=version("diffusers"),
        device=pipe.device.type,
        dtype=str(pipe.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _size(pipe: ControlledPipeline, recipe: Recipe) -> tuple[int, int]:
    """Height and width that a recipe comes to."""
    usual = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = (getattr(recipe, side) or getattr(pipe.settings, side) or usual for side in ("height", "width"))
    return height, width


def given_settings(pipe: ControlledPipeline) -> dict[str, Any]:
    """The model's own settings that its pipeline takes."""
    known = inspect.signature(pipe.stock.__call__).parameters
    return {name: value for name, value in pipe.settings.given().items() if name in known}


def check_arguments(pipe: ControlledPipeline, recipe: Recipe) -> None:
    """Raise ControlError for a pipeline that starts from a picture, and for arguments that it does not have."""
    name, known = pipe.stock.__name__, inspect.signature(pipe.stock.__call__).parameters
    if STARTED & known.keys():
        text = "StableDiffusion3Pipeline" if name.startswith("StableDiffusion3") else "FluxPipeline"
        raise ControlError(f"{name} starts from a picture, and a recipe has only words; load it with pipeline={text!r}")
    for argument in recipe.arguments():
        if argument not in known:
            raise ControlError(f"{name} has no {argument}; {INSTEAD.get(argument, 'leave it out of the recipe')}")


def check_size(pipe: ControlledPipeline, height: int | None, width: int | None) -> None:
    """Raise ControlError for a size that is no whole number of the model's tokens."""
    unit = host_of(pipe).unit
    for name, value in (("height", height), ("width", width)):
        if value is not None and value % unit:
            near = max(unit, round(value / unit) * unit)
            raise ControlError(f"{name} {value} is no multiple of {unit} px, this model's token; {near} is the nearest")
