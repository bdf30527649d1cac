"""Attention: which part of the picture attends to which word, by block, head and step; what every head does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ....errors import ControlError
from ....pipelines.generate import PictureSet, check_size, finished
from ....pipelines.observe import Observation, observe
from ....pipelines.recipe import Recipe
from ....where import Where
from .. import look
from ..engine import enlarged
from ..frame import AT_ONCE, Frame, Tab, Values, sentence
from ..jobs import Job
from ..settings import NAMES, Settings, settings
from ..store import Visit

EXAMPLES = ["a red fox, comic", "a penguin, watercolor", "a guitar, neon sign"]
EVERY = "all"
STATISTICS = {
    "text": "share of attention on text",
    "image": "share of attention on the own image",
    "shared": "share of attention on references and condition images",
    "entropy": "entropy, as a share of ln(keys)",
    "distance": "mean distance to the attended image token, in grid widths",
    "near": "share of attention on the own token's 3 x 3 tokens",
}
SHOWN = 24
"""Overlays of single blocks at most."""


def watch(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> tuple[PictureSet, Observation]:
    """One run of the pipeline, its attention recorded."""
    prompt, *rest = values
    given, where = Settings.read(rest)
    if not (prompt or "").strip():
        raise ControlError("there is no prompt; write one")
    recipe = Recipe(prompts=(prompt.strip(),), **given)
    return observed(frame, job, recipe, Where(**where))


def observed(
    frame: Frame, job: Job, recipe: Recipe, where: Where, words: Sequence[str] | None = None
) -> tuple[PictureSet, Observation]:
    """A recipe's picture, and what its tokens attend to."""
    frame.engine.check(recipe)
    steps = frame.engine.steps_of(recipe)
    job.plan(steps)
    progress = job.part("Observing", steps)

    def stepped(run: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(number + 1, run.num_timesteps)
        return tensors

    with frame.engine.pipe(recipe.model) as pipe:
        check_size(pipe, recipe.height, recipe.width)
        generator = torch.Generator().manual_seed(recipe.seed)
        call = {**recipe.arguments(), "generator": generator, "callback_on_step_end": stepped}
        seen = observe(pipe, recipe.prompts[0], words, where=where, dtype="float16", **call)
        return finished(pipe, recipe, [seen.image]), seen


def chosen(values: Sequence[Any]) -> dict[str, Any]:
    """Block, head and step of the map that is wanted; None for all."""
    block, head, step = values
    return {
        "block": None if block in (None, EVERY) else block,
        "head": None if head in (None, EVERY) else int(str(head).removeprefix("H")),
        "step": None if step in (None, EVERY) else int(step),
    }


def by_word(seen: Observation, where: dict[str, Any]) -> list[tuple[Image.Image, str]]:
    """The overlay of every word, on one scale."""
    top = max(float(seen.map(word, **where).max()) for word in seen.words)
    means = {word: float(seen.map(word, **where).mean()) for word in seen.words}
    return [(seen.overlay(word, **where, top=top), f"{word} {mean:.1%}") for word, mean in means.items()]


def by_block(seen: Observation, word: str, where: dict[str, Any]) -> list[tuple[Image.Image, str]]:
    """The overlay of one word at every block that has it, each on a scale of its own."""
    found = []
    for label in seen.blocks:
        try:
            found.append((seen.overlay(word, **{**where, "block": label}), label.partition(" ")[0]))
        except ControlError:
            continue
    return found[:SHOWN]


def rows_of(found: list[tuple[Image.Image, str]]) -> Any:
    """A gallery's pictures, in full rows where they are few."""
    return gr.update(value=found, columns=4 if len(found) in (4, 7, 8) else 6)


def heads_table(seen: Observation, name: str, where: dict[str, Any]) -> str:
    """A statistic of every head as a table, shaded from least to most."""
    values = seen.statistics[name]
    steps = values if where["step"] is None else values[[seen.steps.index(where["step"])]]
    means = np.nanmean(steps, axis=0)
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    head = "".join(f"<th scope='col'>H{i}</th>" for i in range(means.shape[1]))
    rows = []
    for label, row in zip(seen.blocks, means, strict=True):
        cells = []
        for value in row:
            share = 0.0 if high == low else (float(value) - low) / (high - low)
            text = "–" if np.isnan(value) else f"{value:.3f}"
            strength = 0.0 if np.isnan(value) else 65 * share
            shade = f"color-mix(in oklab, var(--color-accent) {strength:.0f}%, transparent)"
            cells.append(f"<td style='background:{shade}'>{text}</td>")
        rows.append(f"<tr><th scope='row'>{escape(label)}</th>{''.join(cells)}</tr>")
    over = "all steps" if where["step"] is None else f"step {where['step']}"
    says = f"{escape(STATISTICS[name]).capitalize()}; mean over {over}"
    return (
        f"<div class='ac-table'><table><caption>{says}</caption><tr><td></td>{head}</tr>{''.join(rows)}</table></div>"
    )


def build(frame: Frame) -> None:
    """Lay the tab out and wire it."""
    with gr.Row(elem_classes="ac-row"):
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", max_lines=2, elem_id="attention-prompt")
            taken = settings(frame.engine)
            with gr.Row():
                run = gr.Button("Observe", variant="primary", elem_id="attention-run")
                cancel = gr.Button("Cancel", interactive=False, elem_id="attention-cancel")
            gr.Examples(EXAMPLES, [prompt], label="Examples")
            restore = gr.UploadButton("Restore from recipe or PNG", file_types=[".json", ".png"])
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(look.said("Where does each word land? One run records it."), elem_id="attention-status")
            with gr.Row():
                word = gr.Dropdown([], label="Word", elem_id="attention-word")
                block = gr.Dropdown([EVERY], value=EVERY, label="Block", elem_id="attention-block")
                head = gr.Dropdown([EVERY], value=EVERY, label="Head")
                step = gr.Dropdown([EVERY], value=EVERY, label="Step")
            with gr.Row(elem_classes="ac-row"):
                picture = _image("Picture", "attention-picture")
                overlay = _image("Attention to the word", "attention-overlay")
            words = _gallery("Every word, on one scale; its mean share of attention", 4, "attention-words")
            blocks = _gallery("The word at every block, each on its own scale", 6, "attention-blocks")
            with gr.Accordion("Heads", open=False):
                figure = gr.Dropdown(list(STATISTICS), value=next(iter(STATISTICS)), label="Statistic")
                table = gr.HTML(elem_id="attention-heads")
            download = gr.DownloadButton("Picture and recipe (zip)", interactive=False)
    kept = gr.State("")
    views = [word, block, head, step]
    drawn = [overlay, words, blocks, table]

    def views_of(seen: Observation, name: str, rest: Sequence[Any], statistic: str) -> list[Any]:
        where = chosen(rest)
        return [
            seen.overlay(name, **where), by_word(seen, where), rows_of(by_block(seen, name, where)),
            heads_table(seen, statistic, where),
        ]  # fmt: skip

    def show(found: tuple[PictureSet, Observation], visit: Visit) -> Values:
        made, seen = found
        heads = [EVERY, *(f"H{i}" for i in range(seen.maps.shape[3]))]
        first = seen.words[-1] if len(seen.words) == 1 else seen.words[0]
        pictures = views_of(seen, first, [EVERY] * 3, next(iter(STATISTICS)))
        return {
            picture: enlarged(seen.image, 384), kept: visit.keep(seen), taken["seed"]: made.recipe.seed,
            word: gr.update(choices=list(seen.words), value=first),
            block: gr.update(choices=[EVERY, *seen.blocks], value=EVERY),
            head: gr.update(choices=heads, value=EVERY),
            step: gr.update(choices=[EVERY, *map(str, seen.steps)], value=EVERY),
            download: gr.update(value=frame.archive(visit, "attention", {"picture": made}), interactive=True),
            **dict(zip(drawn, pictures, strict=True)),
        }  # fmt: skip

    def turn(request: gr.Request, name: str, statistic: str, *rest: Any) -> list[Any]:
        if not name:
            return [gr.skip()] * 5
        try:
            seen: Observation = frame.visit(request).result(name)
            return [*views_of(seen, rest[0], rest[1:], statistic), gr.skip()]
        except Exception as fault:
            return [*[gr.skip()] * 4, look.note(sentence(fault))]

    outputs = [picture, *views, *drawn, download, kept, taken["seed"]]
    inputs = [prompt, *taken.components]
    frame.work("attention", run, cancel, status, inputs, outputs, partial(watch, frame), show)
    for one in (*views, figure):
        one.input(turn, [kept, figure, *views], [*drawn, status], **AT_ONCE)

    def back(path: str | None) -> list[Any]:
        try:
            recipe = frame.read(path)
            return [recipe.prompts[0], *Settings.restored(recipe, {}), look.said("Restored.")]
        except Exception as fault:
            return [*[gr.skip()] * (1 + len(NAMES)), look.note(sentence(fault))]

    restore.upload(back, [restore], [*inputs, status], **AT_ONCE)


def _image(label: str, name: str) -> gr.Image:
    return gr.Image(label=label, format="png", interactive=False, height=300, elem_id=name, buttons=["fullscreen"])


def _gallery(label: str, columns: int, name: str) -> gr.Gallery:
    return gr.Gallery(
        label=label, columns=columns, format="png", height="auto", object_fit="contain", allow_preview=True,
        interactive=False, elem_id=name, elem_classes="ac-gallery", buttons=[],
    )  # fmt: skip


TAB = Tab("Attention", 3, build)
