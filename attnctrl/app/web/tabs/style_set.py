"""Style set: prompts in one style, plain beside aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from ....control import Control
from ....errors import ControlError
from ....pipelines.generate import PictureSet
from ....pipelines.recipe import Recipe
from ....processors import SharingControl
from ....reference import Reference
from ....registry import control_class, control_of, controls, preset_named, presets
from ...options import follows
from .. import look
from ..engine import enlarged
from ..frame import AT_ONCE, Frame, Tab, Values, sentence
from ..jobs import Job, Update
from ..settings import NAMES, Settings, settings
from ..store import Visit

PRESETS = {
    "AlignedGen, gentle": ("aligned-gentle", 1.0),
    "AlignedGen, half strength": ("aligned", 0.5),
    "AlignedGen, as published": ("aligned", 1.0),
    "StyleAligned, as published": ("stylealigned", 1.0),
    "Naive sharing": ("naive", 1.0),
}
USUAL = "aligned-gentle"
OWN = ("strength", "where", "reference")
"""What the tab asks of a method; all else is the method's, or the preset's."""
EXAMPLES = [
    ["a mushroom, sticker\na rocket, sticker\na penguin, sticker\na butterfly, sticker"],
    ["a fox, comic\na key, comic\na house, comic\na strawberry, comic"],
    ["a guitar, watercolor\na cactus, watercolor\na fish, watercolor\na crown, watercolor"],
]
BY_PROMPT, BY_PICTURE = "The first prompt leads", "A picture leads"


@dataclass(frozen=True)
class Pair:
    """The same prompts and seeds, plain and controlled."""

    plain: PictureSet
    aligned: PictureSet


def asked(values: Sequence[Any]) -> tuple[Recipe, Recipe]:
    """The two recipes that the components' values describe; ControlError says what is missing."""
    leads, picture, mask, caption, text, method, strength, *rest = values
    given, where = Settings.read(rest)
    prompts = tuple(line.strip() for line in (text or "").splitlines() if line.strip())
    plain = Recipe(prompts=prompts or ("",), **given) if prompts else None
    if plain is None:
        raise ControlError("there is no prompt; write some, one a line")
    options: dict[str, Any] = {"strength": strength} | ({"where": where} if where else {})
    if leads == BY_PICTURE:
        if picture is None:
            raise ControlError("a picture is to lead, and there is none; drop one, or let the first prompt lead")
        options["reference"] = Reference(picture=picture, caption=caption or "", mask=mask)
    elif follows(control_class(method)):
        raise ControlError(f"{method} keeps the subject of a picture: choose that a picture leads, and drop it")
    elif len(prompts) < 2:
        raise ControlError("one prompt has nothing to share a style with; write two or more, or let a picture lead")
    control: Control = control_of({"kind": method, **options})
    return plain, plain.model_copy(update={"control": (control,)})


def draw(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> Pair:
    """Both sets; the plain one is kept, so that another strength costs one run."""
    plain, aligned = asked(values)
    frame.engine.check(plain)
    steps = frame.engine.steps_of(plain)
    key = f"plain {plain.dump()}"
    known: PictureSet | None = visit.found(key)
    job.plan(steps if known else 2 * steps)
    first = known or frame.engine.draw(job, plain, "Plain", steps)
    visit.keep(first, key)
    return Pair(first, frame.engine.draw(job, aligned, "Aligned", steps))


def restored(frame: Frame, path: str | None) -> list[Any]:
    """Values of all components as they made a recipe: text, leader, method, settings, and what is to be said."""
    recipe = frame.read(path)
    found = next((control for control in recipe.control if isinstance(control, SharingControl)), None)
    references = found.references() if found else ()
    reference = references[0] if references else None
    method, moved = (preset_named(found), _moved(found)) if found else (USUAL, {})
    others = [control.kind for control in recipe.control if control is not found]
    if found and control_of({"kind": method, **{name: getattr(found, name) for name in OWN}}) != found:
        others.insert(0, f"settings of {found.kind}")
    said = f"Restored. It also has {', '.join(others)}, which this tab does not show." if others else "Restored."
    return [
        BY_PICTURE if reference else BY_PROMPT,
        reference.picture if reference else None,
        reference.mask if reference else None,
        reference.caption if reference else "",
        "\n".join(recipe.prompts),
        method,
        found.strength if found else 0.0,
        *Settings.restored(recipe, moved),
        look.said(said),
    ]


def _moved(control: SharingControl) -> dict[str, str]:
    """Blocks, heads and steps that are not the method's, or the preset's, own."""
    given = {"kind": preset_named(control), "reference": control.reference}
    usual = control_of(given).where.model_dump()
    return {name: text for name, text in control.where.model_dump().items() if text != usual[name]}


def build(frame: Frame) -> None:
    """Lay the tab out and wire it."""
    limits = frame.engine.limits
    with gr.Row(elem_classes="ac-row"):
        with gr.Column(scale=2, min_width=320):
            prompts = gr.Textbox(
                EXAMPLES[0][0], label="Prompts, one a line", lines=4, max_lines=limits.prompts, elem_id="set-prompts"
            )
            leads = gr.Radio([BY_PROMPT, BY_PICTURE], value=BY_PROMPT, show_label=False, container=False)
            with gr.Group(visible=False) as picture_group:
                picture = gr.Image(
                    label="Picture that leads", type="pil", format="png", height=180, sources=["upload", "clipboard"]
                )
                caption = gr.Textbox(label="What it shows", placeholder="a fox", max_lines=1)
                with gr.Accordion("Mask: white where it is read", open=False):
                    mask = gr.Image(show_label=False, type="pil", format="png", height=140, sources=["upload"])
            preset = gr.Dropdown(list(PRESETS), value=next(iter(PRESETS)), label="Preset")
            with gr.Row():
                sharing = [(cls.title or cls.__name__, kind) for kind, cls in controls("sharing").items()]
                sharing += [(one.title, name) for name, one in presets("sharing").items()]
                method = gr.Dropdown(sharing, value=USUAL, label="Method", min_width=260)
                strength = gr.Slider(0, 2, 1.0, step=0.05, label="Strength", info="0 off, 1 as published")
            chosen = settings(frame.engine)
            with gr.Row():
                run = gr.Button("Make the set", variant="primary", elem_id="set-run")
                cancel = gr.Button("Cancel", interactive=False, elem_id="set-cancel")
            gr.Examples(EXAMPLES, [prompts], label="Examples", example_labels=["Stickers", "Comic", "Watercolors"])
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(
                look.said("Prompts on the left; the first one leads the style of all."), elem_id="set-status"
            )
            with gr.Row(elem_classes="ac-row"):
                plain = _gallery("Plain", "set-plain")
                aligned = _gallery("Aligned", "set-aligned")
            slider = gr.ImageSlider(
                label="Plain | aligned: choose a picture above", format="png", max_height=360, elem_id="set-slider"
            )
            with gr.Row():
                download = gr.DownloadButton("Pictures and recipe (zip)", interactive=False, elem_id="set-download")
                restore = gr.UploadButton(
                    "Restore from recipe or PNG", file_types=[".json", ".png"], elem_id="set-restore"
                )
    kept = gr.State("")
    inputs = [leads, picture, mask, caption, prompts, method, strength, *chosen.components]

    def during(update: Update) -> Values:
        shown = [enlarged(picture) for _, picture in sorted((update.previews or {}).items())]
        return {plain if update.doing == "Plain" else aligned: shown} if shown else {}

    def show(found: Pair, visit: Visit) -> Values:
        recipe = found.aligned.recipe
        sets = {"plain": found.plain, "aligned": found.aligned}
        return {
            plain: _shown(found.plain), aligned: _shown(found.aligned), slider: _pair(found, len(recipe.prompts) - 1),
            download: gr.update(value=frame.archive(visit, "style-set", sets), interactive=True),
            kept: visit.keep(found), chosen["seed"]: recipe.seed,
        }  # fmt: skip

    def compare(name: str, event: gr.SelectData, request: gr.Request) -> Any:
        return _pair(frame.visit(request).result(name), int(event.index)) if name else gr.skip()

    outputs = [plain, aligned, slider, download, kept, chosen["seed"]]
    frame.work("set", run, cancel, status, inputs, outputs, partial(draw, frame), show, during)
    for gallery in (plain, aligned):
        gallery.select(compare, [kept], [slider], **AT_ONCE)
    leads.change(lambda one: gr.update(visible=one == BY_PICTURE), [leads], [picture_group], **AT_ONCE)
    preset.input(lambda name: PRESETS[name], [preset], [method, strength], **AT_ONCE)

    def back(path: str | None) -> list[Any]:
        try:
            return restored(frame, path)
        except Exception as fault:
            return [*[gr.skip()] * (7 + len(NAMES)), look.note(sentence(fault))]

    restore.upload(back, [restore], [*inputs, status], **AT_ONCE)


def _gallery(label: str, name: str) -> gr.Gallery:
    return gr.Gallery(
        label=label, columns=2, format="png", height="auto", object_fit="contain", allow_preview=False,
        interactive=False, elem_id=name, elem_classes="ac-gallery", buttons=[],
    )  # fmt: skip


def _shown(found: PictureSet) -> list[tuple[Image.Image, str]]:
    return [(enlarged(p), text) for p, text in zip(found.pictures, found.recipe.prompts, strict=True)]


def _pair(found: Pair, number: int) -> tuple[Image.Image, Image.Image]:
    return enlarged(found.plain.pictures[number], 384), enlarged(found.aligned.pictures[number], 384)


TAB = Tab("Style set", 1, build)
