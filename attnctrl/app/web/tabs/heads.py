"""Heads: what single attention heads do to a picture, their atlas, a search for an objective, presets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ....embedded import MODELS
from ....evals.heads.atlas import GUIDED, PERTURBED, PLAIN, Atlas
from ....pipelines.recipe import Recipe
from ....processors import SoftPAG
from .. import look
from ..engine import enlarged
from ..frame import AT_ONCE, QUEUE, Frame, Tab, Values, sentence
from ..head_grid import CHOSEN, FETCH, LIVE, grid, map_of
from ..head_work import (
    ATLAS,
    LARGEST_W,
    USUAL,
    Pictures,
    draw,
    draw_atlas,
    expect,
    fitting,
    loaded,
    objectives,
    restored,
    saved,
    search,
)
from ..jobs import Update
from ..settings import NAMES, settings
from ..store import Visit


@dataclass(frozen=True)
class Parts:
    """The components."""

    kept: list[Any]
    """Prompt, heads, u, w and the settings: what a recipe needs."""
    map: gr.HTML
    live: gr.Checkbox
    run: gr.Button
    cancel: gr.Button
    status: gr.HTML
    shown: dict[str, gr.Image]
    captions: dict[str, gr.Markdown]
    slider: gr.ImageSlider
    download: gr.DownloadButton
    restore: gr.UploadButton
    atlas: tuple[gr.Dropdown, gr.Button, gr.Button, gr.DownloadButton]
    search: tuple[tuple[Any, ...], gr.Button, gr.Button, gr.Button]
    presets: tuple[gr.Dropdown, gr.UploadButton, gr.Textbox, gr.Button, gr.DownloadButton]

    @property
    def model(self) -> Any:
        """The model's dropdown."""
        return self.kept[4 + NAMES.index("model")]

    @property
    def seed(self) -> Any:
        """The seed's number."""
        return self.kept[4 + NAMES.index("seed")]


def build(frame: Frame) -> None:
    """Lay the tab out and wire it."""
    parts = _layout(frame)
    remap = _safely(frame, _remapped, 1)
    again = remap, [parts.kept[1], parts.model, parts.atlas[0]], [parts.map, parts.status]
    _wire_runs(frame, parts, again)
    _wire_presets(frame, parts, again)
    _wire_changes(parts, again)


def _layout(frame: Frame) -> Parts:
    first = frame.engine.models[0]
    with gr.Row(elem_classes="ac-row"):
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox("a fox, sticker", label="Prompt", max_lines=2, elem_id="heads-prompt")
            heat = grid(map_of(first))
            heads = gr.Textbox(label="Heads", placeholder="L2H0 L3H1, H2, all", max_lines=2, elem_id="heads-text")
            with gr.Row():
                u = gr.Slider(0, 1, 0.5, step=0.05, label="u", info="How far heads are perturbed", min_width=120)
                w = gr.Slider(-1, LARGEST_W, 3, step=0.25, label="w", info="How far away from that", min_width=120)
            with gr.Row():
                run = gr.Button("Draw", variant="primary", elem_id="heads-run", min_width=100)
                cancel = gr.Button("Cancel", interactive=False, elem_id="heads-cancel", min_width=100)
            live = gr.Checkbox(first in MODELS, label="Live: draw whenever heads, u or w change", container=False)
            chosen = settings(frame.engine, heads=False)
        with gr.Column(scale=3, min_width=320):
            says = "Click heads in the map: they are perturbed, and the picture is pushed away from that."
            status = gr.HTML(look.said(says), elem_id="heads-status")
            shown, captions = {}, {}
            with gr.Row():
                for kind in (PLAIN, PERTURBED, GUIDED):
                    with gr.Column(min_width=90):
                        shown[kind] = gr.Image(
                            label=kind.capitalize(), show_label=False, format="png", interactive=False,
                            elem_id=f"heads-{kind}", buttons=["download"],
                        )  # fmt: skip
                        captions[kind] = gr.Markdown(_caption(kind))
            slider = gr.ImageSlider(label="Plain | guided", format="png", max_height=420, elem_id="heads-slider")
            with gr.Row():
                download = gr.DownloadButton("Pictures and recipes (zip)", interactive=False, elem_id="heads-download")
                restore = gr.UploadButton(
                    "Restore from recipe or PNG", file_types=[".json", ".png"], elem_id="heads-restore"
                )
            atlas, search, presets = _atlas_part(first), _search_part(first), _presets_part(first)
    return Parts(
        [prompt, heads, u, w, *chosen.components], heat, live, run, cancel, status, shown, captions, slider, download,
        restore, atlas, search, presets,
    )  # fmt: skip


def _atlas_part(model: str) -> tuple[gr.Dropdown, gr.Button, gr.Button, gr.DownloadButton]:
    with gr.Accordion("Atlas: what guidance by each head gains", open=True):
        wanted = gr.Dropdown(objectives(model), value=USUAL[0], label="Objective", allow_custom_value=True)
        with gr.Row():
            draws = gr.Button("Draw the atlas", elem_id="heads-atlas", min_width=100)
            cancel = gr.Button("Cancel", interactive=False, elem_id="heads-atlas-cancel", min_width=100)
        page = gr.DownloadButton(
            "The atlas with every picture (one page)", interactive=False, size="sm", elem_id="heads-page"
        )
    return wanted, draws, cancel, page


def _search_part(model: str) -> tuple[tuple[Any, ...], gr.Button, gr.Button, gr.Button]:
    with gr.Accordion("Search the heads for an objective", open=False):
        wanted = gr.Dropdown(objectives(model), value=USUAL[0], label="Objective", allow_custom_value=True)
        prompts = gr.Textbox("a fox\na rocket\na mushroom", label="Prompts, one a line", lines=3, max_lines=8)
        with gr.Row():
            rounds = gr.Number(2, label="Rounds", precision=0, minimum=1, maximum=20, min_width=90)
            top_k = gr.Number(2, label="Heads a round", precision=0, minimum=1, maximum=20, min_width=90)
            pictures = gr.Number(3, label="Pictures a set", precision=0, minimum=1, maximum=64, min_width=90)
        with gr.Row():
            expects = gr.Button("Estimate", elem_id="heads-expect", min_width=100)
            start = gr.Button("Search", elem_id="heads-search", min_width=100)
            cancel = gr.Button("Cancel", interactive=False, elem_id="heads-search-cancel", min_width=100)
    return (wanted, prompts, rounds, top_k, pictures), expects, start, cancel


def _presets_part(model: str) -> tuple[gr.Dropdown, gr.UploadButton, gr.Textbox, gr.Button, gr.DownloadButton]:
    with gr.Accordion("Presets", open=False):
        shelf = gr.Dropdown(fitting(model), value=None, label="Shipped for this model", elem_id="heads-preset")
        name = gr.Textbox(label="Name of your own", placeholder="own", max_lines=1)
        with gr.Row():
            save = gr.Button("Save as JSON", elem_id="heads-save", min_width=100)
            upload = gr.UploadButton("Load from JSON", file_types=[".json"], elem_id="heads-load", min_width=100)
        file = gr.DownloadButton("Preset", visible="hidden", elem_id="heads-preset-file")
    return shelf, upload, name, save, file


def _wire_runs(frame: Frame, parts: Parts, again: tuple[Any, ...]) -> None:
    """The four kinds of long work, one at a time."""
    status, kept, (wanted, atlas, stop_atlas, page) = parts.status, parts.kept, parts.atlas
    asks, expects, start, stop_search = parts.search
    outputs = [*parts.shown.values(), *parts.captions.values(), parts.slider, parts.download, parts.seed]
    work = partial(frame.work, status=status)

    def page_of(found: Atlas, visit: Visit) -> Values:
        return {page: gr.update(value=str(found.folder / "atlas.html"), interactive=True)}

    def best(found: tuple[str, str], visit: Visit) -> Values:
        return {kept[1]: found[0], status: look.said(found[1])}

    def expected(says: str, visit: Visit) -> Values:
        return {status: look.said(says)}

    def during(update: Update) -> Values:
        return {parts.shown[update.doing.lower()]: enlarged(one) for one in (update.previews or {}).values()}

    # fmt: off
    runs = {
        parts.run: work("heads", parts.run, parts.cancel, inputs=kept, outputs=outputs, do=partial(draw, frame),
                        show=partial(_shown, frame, parts), during=during),
        atlas: work("heads-atlas", atlas, stop_atlas, inputs=[wanted, *kept], outputs=[page],
                    do=partial(draw_atlas, frame), show=page_of),
        expects: work("heads-expect", expects, stop_search, inputs=[*asks, *kept], outputs=[],
                      do=partial(expect, frame), show=expected),
        start: work("heads-search", start, stop_search, inputs=[*asks, *kept], outputs=[kept[1]],
                    do=partial(search, frame), show=best),
    }
    # fmt: on
    for button, ended in runs.items():
        button.click(lambda: [gr.update(interactive=False)] * 4, None, [*runs], **AT_ONCE)
        ended.then(lambda: [gr.update(interactive=True)] * 4, None, [*runs], **AT_ONCE)
        ended.then(*again, **AT_ONCE)


def _wire_presets(frame: Frame, parts: Parts, again: tuple[Any, ...]) -> None:
    """Loading and saving presets, restoring recipes."""
    (shelf, upload, name, save, file), (_, heads, u, w, *_) = parts.presets, parts.kept

    def put(visit: Visit, source: str | None, model: str) -> list[Any]:
        preset, says = loaded(frame, source, model)
        return [preset.heads.replace(",", " "), preset.u, min(preset.strength, LARGEST_W), look.said(says)]

    def write(visit: Visit, stem: str, *values: Any) -> list[Any]:
        return [saved(frame, visit, stem, values), look.said("Saved.")]

    def back(visit: Visit, path: str | None) -> list[Any]:
        return restored(frame, path)

    for event, source in ((shelf.input, shelf), (upload.upload, upload)):
        done = event(_safely(frame, put, 3), [source, parts.model], [heads, u, w, parts.status], **QUEUE)
        done.then(*again, **AT_ONCE)
    written = _safely(frame, write, 1, gr.update(value=None))
    save.click(written, [name, *parts.kept], [file, parts.status], **QUEUE).then(None, None, None, js=FETCH)
    restored_too = _safely(frame, back, len(parts.kept))
    done = parts.restore.upload(restored_too, [parts.restore], [*parts.kept, parts.status], **AT_ONCE)
    done.then(*again, **AT_ONCE)


def _wire_changes(parts: Parts, again: tuple[Any, ...]) -> None:
    """The map follows text, model and objective, the text follows the map; Live draws."""
    (_, heads, u, w, *_), model = parts.kept, parts.model

    def offered(name: str) -> list[Any]:
        return [*[gr.update(choices=objectives(name))] * 2, gr.update(choices=fitting(name), value=None)]

    parts.map.input(None, [parts.map], [heads], js=CHOSEN)
    for event in (heads.submit, heads.blur, parts.atlas[0].change, model.change):
        event(*again, **AT_ONCE)
    model.change(offered, [model], [parts.atlas[0], parts.search[0][0], parts.presets[0]], **AT_ONCE)
    for event, wait in ((heads.change, 700), (u.release, 50), (w.release, 50), (u.input, 900), (w.input, 900)):
        event(None, [parts.live, heads], None, js=LIVE.replace("WAIT", str(wait)))


def _remapped(visit: Visit, text: str, model: str, wanted: str | None) -> list[Any]:
    return [map_of(model, text, visit.found(ATLAS), (wanted or "").strip()), gr.skip()]


def _shown(frame: Frame, parts: Parts, found: Pictures, visit: Visit) -> Values:
    last: Path | None = visit.found("heads zip")
    if last:  # Gradio keeps its own copy of what is downloaded
        shutil.rmtree(last.parent, ignore_errors=True)
    archive = Path(frame.archive(visit, "heads", found))
    visit.keep(archive, "heads zip")
    large = {kind: enlarged(one.pictures[0], 384) for kind, one in found.items()}
    return {
        **{parts.shown[kind]: one for kind, one in large.items()},
        **{parts.captions[kind]: _caption(kind, one.recipe) for kind, one in found.items()},
        parts.slider: (large[PLAIN], large[GUIDED]),
        parts.download: gr.update(value=str(archive), interactive=True),
        parts.seed: found[PLAIN].recipe.seed,
    }


def _caption(kind: str, recipe: Recipe | None = None) -> str:
    """A picture's name and what made it."""
    made = [f"w {one.strength:g}, u {one.u:g}" for one in recipe.control if isinstance(one, SoftPAG)] if recipe else []
    return "  \n".join([f"**{kind.capitalize()}**", *made]).replace("-", "−")


def _safely(frame: Frame, do: Callable[..., list[Any]], count: int, empty: Any = None) -> Callable[..., list[Any]]:
    """`do` for a visitor; an error becomes a sentence in the last output, the others get `empty` or stay."""

    def run(request: gr.Request, *values: Any) -> list[Any]:
        try:
            return do(frame.visit(request), *values)
        except Exception as fault:
            return [*[gr.skip() if empty is None else empty] * count, look.note(sentence(fault))]

    return run


TAB = Tab("Heads", 2, build)
