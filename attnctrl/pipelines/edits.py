"""The edit task: a recipe of edits run, and its pictures written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from .checks import check_fits
from .editing import Edited, Opened, edit, open_source
from .facts import facts_in
from .folders import new_folder
from .generate import RECIPE, SHEET, Progress, check_arguments, check_size, environment, given_settings, pixel_hash
from .mixin import ControlledPipeline
from .recipe import PNG_KEY, EditRecipe, Made
from .sheets import SheetRow, contact_sheet

ROUGH = "what the prompt alone makes"


@dataclass(frozen=True)
class EditSet:
    """A picture and its edits, and the recipe with what was made."""

    opened: Opened
    edits: tuple[Edited, ...]
    recipe: EditRecipe

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The source, then the edits."""
        return (self.opened.image, *(one.image for one in self.edits))


def run_edits(
    pipe: ControlledPipeline, recipe: EditRecipe, progress: Progress | None = None, compare: bool = True
) -> EditSet:
    """Draw a recipe's picture and its edits on a loaded pipeline; progress(done, total) after every solver step.

    compare: beside every edit also what its prompt alone makes. Raises ControlError when the model cannot run it.
    """
    for one in recipe.sets():
        check_fits(one, facts_in(pipe))
        check_arguments(pipe, one)
    check_size(pipe, recipe.height, recipe.width)
    runs = 1 + len(recipe.edits) * (2 if compare else 1)
    begun = 0

    def stepped(done: int, of: int) -> None:
        nonlocal begun
        begun += done == 1
        if progress:
            progress((begun - 1) * of + done, runs * of)

    opened = open_source(
        pipe, recipe.prompt, seed=recipe.seed, control=recipe.control, stepped=stepped, **recipe.arguments()
    )
    done: list[Opened] = [opened]
    edits: list[Edited] = []
    for change in recipe.edits:
        made = edit(
            pipe, done[change.of], change.prompt, change.control, region=change.region, keep=change.keep,
            compare=compare, stepped=stepped,
        )  # fmt: skip
        done.append(made)
        edits.append(made)
    return EditSet(opened, tuple(edits), settled(pipe, recipe, [one.image for one in done]))


def write_edits(result: EditSet, folder: Path, heading: str = "") -> None:
    """Write the pictures (with the recipe in their metadata), masks, sheet and recipe, all or nothing."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, result.recipe.dump())
    with new_folder(folder) as draft:
        for made, picture in zip(result.recipe.made, result.pictures, strict=True):
            picture.save(draft / made.file, pnginfo=info)
        for number, one in enumerate(result.edits, 1):
            for name, beside in (("region", one.region), ("plain", one.plain)):
                if beside is not None:
                    beside.save(draft / f"{number:02d}-{name}.png")
        contact_sheet(edit_rows(result), heading).save(draft / SHEET)
        (draft / RECIPE).write_text(result.recipe.dump(), encoding="utf-8")


def edit_rows(result: EditSet) -> list[SheetRow]:
    """A row for each edit: what was edited, the region on it, what the prompt alone makes, the edit."""
    rows = []
    prompts = (result.recipe.prompt, *(one.prompt for one in result.recipe.edits))
    for number, (one, told) in enumerate(zip(result.edits, result.recipe.edits, strict=True), 1):
        pictures, captions = [one.before], [prompts[told.of]]
        if one.region is not None:
            pictures.append(shown_region(one.before, one.region))
            captions.append("the region")
        if one.plain is not None:
            pictures.append(one.plain)
            captions.append(f"{ROUGH}: changes {one.plainly:.3f}")
        kinds = " + ".join(control.kind for control in told.control) or "plain"
        taken = "" if one.took else " (hardly to be seen)"
        pictures.append(one.image)
        captions.append(f"{told.prompt}: changes {one.changed:.3f}{taken}, outside {one.outside:.3f}")
        rows.append(SheetRow(f"{number}. {kinds}", pictures, captions, frozenset({0})))
    return rows


def shown_region(picture: Image.Image, region: Image.Image) -> Image.Image:
    """A picture dimmed outside of a region."""
    dim = Image.blend(picture.convert("RGB"), Image.new("RGB", picture.size, "#202024"), 0.75)
    return Image.composite(picture.convert("RGB"), dim, region.convert("L"))


def settled(pipe: ControlledPipeline, recipe: EditRecipe, pictures: Sequence[Image.Image]) -> EditRecipe:
    """The recipe of finished pictures, the source first, with settings, environment and their hashes written out."""
    prompts = (recipe.prompt, *(one.prompt for one in recipe.edits))
    made = tuple(
        Made(file=f"{i:02d}.png", prompt=prompt, seed=recipe.seed, sha256=pixel_hash(picture))
        for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
    )
    known = {**given_settings(pipe), **recipe.arguments(), "made": made, "environment": environment(pipe)}
    return recipe.model_copy(update=known)
