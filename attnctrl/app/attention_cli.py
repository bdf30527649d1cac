"""`attnctrl attention`: where a picture's tokens attend to the words of its prompt, and what every head does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ControlError
from ..pipelines.folders import reserved
from ..pipelines.sheets import SheetRow, contact_sheet
from ..words import WORD
from .asked import loadable
from .console import Bar, console
from .ending import keeping
from .models import load_model
from .options import size_of

if TYPE_CHECKING:
    from ..pipelines.observe import Observation
    from ..where import Where

SHEET, MAPS, HEADS = "attention.png", "maps.npz", "heads.json"
ACROSS, AT_MOST = 8, 64
"""Pictures in a row of the sheet, and of one word by block."""


def attention(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    out: Annotated[Path, typer.Option(help="A new folder for the sheet, maps.npz and heads.json.")],
    word: Annotated[
        list[str] | None,
        typer.Option(help="A word or phrase of the prompt; may be given again. None: all that say much."),
    ] = None,
    blocks: Annotated[str, typer.Option(help="Blocks to observe: all, late, 19-56, double:0-4.")] = "all",
    heads: Annotated[str, typer.Option(help="Heads to observe: all, H3 or L14H7,L14H17.")] = "all",
    at_steps: Annotated[str, typer.Option(help="Steps to observe: 0-9 or 0%-40%.")] = "all",
    model: Annotated[str, typer.Option(help="An embedded model, a diffusers folder or a hub id.")] = "tiny-sd3",
    steps: Annotated[int | None, typer.Option(help="Solver steps; the model's own number if not given.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of the picture's noise.")] = 0,
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or 80x48 (width x height).")] = None,
    map_size: Annotated[int, typer.Option(help="Maps are averaged down to at most so many tokens a side.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best one here if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[str, typer.Option(help="none, model or sequential: for GPUs with little memory.")] = "none",
) -> None:
    """Show which image tokens attend to which words, by block and step, and measure every head."""
    from ..pipelines.checks import check_before, check_where, steps_come, steps_of, warn_of_doubts
    from ..pipelines.facts import facts_of
    from ..pipelines.recipe import Recipe
    from ..where import Where

    if map_size < 1:
        raise ControlError(f"--map-size {map_size}: give one token or more")
    where = Where(blocks=blocks, heads=heads, steps=at_steps)
    loadable(device, dtype, offload)
    recipe = Recipe(model=model, prompts=(prompt,), num_inference_steps=steps, seed=seed, **size_of(size))
    check_before(recipe)
    facts = facts_of(model)
    steps_come("attention", where, steps_of(recipe, facts))
    if facts is not None:
        check_where("attention", where, facts)
    for one in word or ():
        said(prompt, one)
    with reserved(out), keeping("nothing was written"):
        warn_of_doubts(model, recipe.prompts)
        _observe(prompt, out, word, where, model, steps, seed, size, map_size, device, dtype, offload)


def _observe(
    prompt: str, out: Path, word: list[str] | None, where: Where, model: str, steps: int | None, seed: int,
    size: str | None, map_size: int, device: str | None, dtype: str | None, offload: str,
) -> None:  # fmt: skip
    import torch

    from ..pipelines.generate import check_size, new_folder
    from ..pipelines.observe import observe

    pipe = load_model(model, device, dtype, offload)
    given: dict[str, Any] = {**size_of(size), **({} if steps is None else {"num_inference_steps": steps})}
    check_size(pipe, given.get("height"), given.get("width"))
    with Bar("steps") as step:

        def stepped(run: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step(number + 1, run.num_timesteps, 0.0)
            return tensors

        found = observe(
            pipe, prompt, word, where=where, size=map_size, generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=stepped, **given,
        )  # fmt: skip
    with new_folder(out) as draft:
        contact_sheet(sheet_rows(found), f"{prompt} ({model}, seed {seed})").save(draft / SHEET)
        write_maps(found, draft / MAPS)
        write_heads(found, draft / HEADS, model, seed)
    for name in (SHEET, MAPS, HEADS):
        console.print(str(out / name), highlight=False, soft_wrap=True)


def sheet_rows(found: Observation, word: str | None = None) -> list[SheetRow]:
    """The picture and every word's map; then one word's, the first one's if none is named, by block and by step.

    Every map has its own scale; the caption says its maximum, and how many times its mean that is.
    """
    word = word or found.words[0]
    reading = [label for i, label in enumerate(found.blocks) if _observed(found.maps[:, i])][:AT_MOST]
    pick = sorted({round(i * (len(found.steps) - 1) / (ACROSS - 1)) for i in range(ACROSS)})
    pictures = [found.image, *(found.overlay(one) for one in found.words)]
    rows = _rows("Words", pictures, ["the picture", *(_said(found, one, one) for one in found.words)])
    by_block = [found.overlay(word, block=b) for b in reading]
    rows += _rows(f"“{word}” by block", by_block, [_said(found, b, word, block=b) for b in reading])
    chosen = [found.steps[i] for i in pick]
    by_step = [found.overlay(word, step=s) for s in chosen]
    return rows + _rows(f"“{word}” by step", by_step, [_said(found, f"step {s}", word, step=s) for s in chosen])


def write_maps(found: Observation, path: Path) -> None:
    """`maps` [steps, blocks, words, heads, rows, columns] with the names of its axes, as NumPy arrays."""
    import numpy as np

    steps, blocks, words = (np.array(names) for names in (found.steps, found.blocks, found.words))
    np.savez_compressed(path, maps=found.maps, steps=steps, blocks=blocks, words=words)


def write_heads(found: Observation, path: Path, model: str, seed: int) -> None:
    """The statistics by name, [steps][blocks][heads]; null where nothing was observed."""
    import json

    import numpy as np

    figures = {
        name: np.where(np.isnan(values), None, values.astype(float).round(6)).tolist()  # type: ignore[call-overload]
        for name, values in found.statistics.items()
    }
    said = {
        "model": model, "prompt": found.prompt, "seed": seed, "grid": found.grid, "steps": found.steps,
        "blocks": found.blocks, "words": dict(zip(found.words, found.columns, strict=True)), "statistics": figures,
    }  # fmt: skip
    path.write_text(json.dumps(said, allow_nan=False) + "\n", encoding="utf-8")


def said(prompt: str, word: str) -> None:
    """Raise ControlError for a word or phrase that the prompt does not hold; the tokens are looked up later."""
    held, wanted = ([one[0].lower() for one in WORD.finditer(text)] for text in (prompt, word))
    places = range(len(held) - len(wanted) + 1)
    if not wanted or not any(held[i : i + len(wanted)] == wanted for i in places):
        raise ControlError(f"there is no word {word!r} in the prompt; its words are {', '.join(held) or 'none'}")


def _said(found: Observation, title: str, word: str, **place: Any) -> str:
    values = found.map(word, **place)
    return f"{title}: {values.max():.3f}, {values.max() / max(values.mean(), 1e-12):.1f} x mean"


def _rows(title: str, pictures: list[Any], captions: list[str]) -> list[SheetRow]:
    starts = range(0, len(pictures), ACROSS)
    return [SheetRow(title if not i else "", pictures[i : i + ACROSS], captions[i : i + ACROSS]) for i in starts]


def _observed(values: Any) -> bool:
    import numpy as np

    return values.size > 0 and not bool(np.isnan(values).all())
