"""Evaluate: start a run of style sets, watch it, open its report."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ....embedded import MODELS
from ....errors import ControlError
from ....evals.metrics.kinds import EMBEDDED, FRECHET, GENERAL
from ....evals.metrics.kinds import metrics as named
from ....evals.runs.arms import COPY, PLAIN, VARIANTS, arms
from ....evals.runs.config import RunConfig
from ....evals.runs.report import PAGE, write_report
from ....evals.runs.run import Run
from ....evals.runs.sets import StyleSet, read_sets, spread
from ....registry import controls, presets
from ...options import follows
from .. import look
from ..frame import AT_ONCE, Frame, Tab, Values, sentence
from ..jobs import Job
from ..settings import Settings, settings
from ..store import Visit

ABLATION = {
    "AlignedGen without ShiftPE": "alignedgen-no-shiftpe",
    "AlignedGen without AdaIN": "alignedgen-no-adain",
    "AlignedGen, lambda 1": "alignedgen-no-lambda",
    "AlignedGen in every block": "alignedgen-every-block",
}
USUAL = ["Plain", "Naive sharing", "StyleAligned", "AlignedGen"]
EMBEDDED_SETS, OWN = "The embedded world's 100 sets", "My own sets (JSONL)"


def methods_offered() -> dict[str, str]:
    """The arms of a run by title: every method that can do without a picture, and the ablation."""
    papers = {kind: name for name, kind in VARIANTS.items()}
    kinds = [(cls.title or cls.__name__, kind) for kind, cls in controls("sharing").items() if not follows(cls)]
    sharing = {title: papers.get(kind, kind) for title, kind in kinds}
    named = {one.title: name for name, one in presets("sharing").items()}
    return {"Plain": PLAIN, "The leader copied (a check)": COPY, **sharing, **named, **ABLATION}


def config_of(frame: Frame, values: Sequence[Any]) -> tuple[RunConfig, tuple[StyleSet, ...]]:
    """The run that the components' values describe."""
    methods, strengths, source, upload, count, *rest = values
    if not methods:
        raise ControlError("no method is chosen; choose at least one")
    if source == OWN and not upload:
        raise ControlError("there are no sets; drop a JSONL file, or choose the shipped ones")
    given, where = Settings.read(rest)
    sweeps = [f"strength={strengths.strip()}"] if (strengths or "").strip() else []
    sweeps += [f"{name}={text}" for name, text in where.items()]
    offered = methods_offered()
    texts = [offered[name] for name in methods]
    return prepared(frame, texts, sweeps, upload if source == OWN else None, int(count), given)


def prepared(
    frame: Frame, methods: Sequence[str], sweeps: Sequence[str], upload: str | None, count: int, given: dict[str, Any]
) -> tuple[RunConfig, tuple[StyleSet, ...]]:
    """A run's configuration and sets; ControlError for more than the server allows, and for files of the server."""
    if given["model"] not in frame.engine.models:
        raise ControlError(f"this server does not offer the model {given['model']!r}")
    if any(word in text for text in methods for word in (".json", ".png", "reference")):
        raise ControlError("files are for the command line; here write a method's name and plain settings")
    sets = own_sets(upload) if upload else read_sets(_shipped(given["model"]))
    sets = spread(sets, min(count, len(sets)))
    found = arms(methods, sweeps)
    items, most = len(found) * len(sets), frame.engine.limits.items
    if items > most:
        raise ControlError(f"{len(found)} methods on {len(sets)} sets: {items} items; this server runs at most {most}")
    size = given.get("width"), given.get("height")
    for one in sets:
        frame.engine.limits.check(given["model"], one.prompts, *size, given["num_inference_steps"])
    metrics: tuple[str, ...] = EMBEDDED if given["model"] in MODELS else GENERAL
    if len(sets) < 2:
        metrics = tuple(name for name in metrics if name != FRECHET)
    name, threads = "own" if upload else _shipped(given["model"]), torch.get_num_threads()
    return RunConfig(sets=name, arms=found, baseline=found[0].name, metrics=metrics, threads=threads, **given), sets


def own_sets(path: str) -> tuple[StyleSet, ...]:
    """A visitor's sets; ControlError for references by path, which would be the server's files."""
    try:
        return read_sets(path, paths=False)
    except ControlError as fault:
        raise ControlError(str(fault).replace(str(path), Path(path).name)) from None


def run(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> Path:
    """Run what the components' values describe."""
    return perform(frame, job, visit, *config_of(frame, values))


def perform(frame: Frame, job: Job, visit: Visit, config: RunConfig, sets: Sequence[StyleSet]) -> Path:
    """Run, or go on with a run: its folder, which is the same for the same settings in one session."""
    key = "run " + hashlib.sha256(f"{config.model_dump_json()}{[one.id for one in sets]}".encode()).hexdigest()
    folder: Path | None = visit.found(key)
    if folder is None or not folder.is_dir():
        folder = visit.new_folder("run") / "run"
        visit.keep(folder, key)
    job.plan(len(config.arms) * len(sets))
    progress = job.part("Sets x methods")
    measures = named(config.metrics)
    with frame.engine.pipe(config.model) as pipe:
        work = Run(pipe, config, sets, measures, folder)
        rows = work.run(progress, job.check)
    failed = [row for row in rows.values() if row.failed]
    if len(failed) == len(rows):
        raise ControlError(f"every item failed; the first: {failed[0].failed}")
    job.part("Writing the report")
    write_report(folder)
    return folder


def build(frame: Frame) -> None:
    """Lay the tab out and wire it."""
    with gr.Row(elem_classes="ac-row"):
        with gr.Column(scale=2, min_width=320):
            methods = gr.CheckboxGroup(list(methods_offered()), value=USUAL, label="Methods", elem_id="eval-methods")
            strengths = gr.Textbox(label="Strengths to sweep", placeholder="empty: 1; or 0.15,0.5,1", max_lines=1)
            source = gr.Radio([EMBEDDED_SETS, OWN], value=EMBEDDED_SETS, label="Sets")
            upload = gr.File(label="Sets, one JSON a line", file_types=[".jsonl"], visible=False, height=120)
            count = gr.Slider(2, 100, 4, step=1, label="How many of them, spread evenly", elem_id="eval-count")
        with gr.Column(scale=2, min_width=320):
            chosen = settings(frame.engine, heads=False)
            with gr.Row():
                start = gr.Button("Start the run", variant="primary", elem_id="eval-run")
                cancel = gr.Button("Cancel", interactive=False, elem_id="eval-cancel")
            says = "Every method draws every set; the report compares them with intervals."
            status = gr.HTML(look.said(says), elem_id="eval-status")
            with gr.Row():
                page = gr.DownloadButton("The report (one page)", interactive=False, elem_id="eval-report")
                whole = gr.DownloadButton("The whole run (zip)", interactive=False)
    shown = gr.HTML(elem_id="eval-shown")

    def show(folder: Path, visit: Visit) -> Values:
        archive = shutil.make_archive(str(folder.parent / "run"), "zip", folder.parent, "run")
        text = (folder / PAGE).read_text(encoding="utf-8").replace(" autofocus>", ">")  # blocked in a sandbox
        frame_of = (
            f'<iframe title="Report of the run" sandbox="allow-scripts" loading="lazy" srcdoc="{escape(text)}" '
            'style="width:100%;height:78vh;border:1px solid var(--border-color-primary);border-radius:10px"></iframe>'
        )
        return {
            page: gr.update(value=str(folder / PAGE), interactive=True),
            whole: gr.update(value=archive, interactive=True),
            shown: frame_of,
        }

    inputs = [methods, strengths, source, upload, count, *chosen.components]
    frame.work("evaluate", start, cancel, status, inputs, [page, whole, shown], partial(run, frame), show)
    source.change(lambda one: gr.update(visible=one == OWN), [source], [upload], **AT_ONCE)

    def estimate(request: gr.Request, *values: Any) -> str:
        try:
            config, sets = config_of(frame, values)
        except Exception as fault:
            return look.note(sentence(fault))
        return look.said(f"{len(config.arms)} methods on {len(sets)} sets: {len(config.arms) * len(sets)} items.")

    for one in (methods, count, strengths):
        one.change(estimate, inputs, [status], **AT_ONCE)


def _shipped(model: str) -> str:
    return "embedded" if model in MODELS else "published"


TAB = Tab("Evaluate", 4, build)
