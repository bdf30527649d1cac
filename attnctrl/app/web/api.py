"""The app's functions for programs: named, typed endpoints for gradio_client and, with the extra, MCP tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import gradio as gr
import numpy as np

from ...control import Control
from ...errors import ControlError
from ...evals.metrics.kinds import KINDS as METRICS
from ...evals.runs.report import PAGE, SUMMARY, TABLE
from ...pipelines.presets import shipped
from ...pipelines.recipe import Recipe
from ...processors import SoftPAG
from ...reference import Reference
from ...registry import control_class, control_of, controls, described, presets
from ...where import Where
from ..options import follows, size_of
from .frame import Frame, noting, sentence
from .jobs import Job
from .store import Visit
from .tabs import attention, evaluate

PUBLIC: dict[str, Any] = {"concurrency_id": "pipeline", "concurrency_limit": 1, "api_visibility": "public"}


def endpoints(frame: Frame) -> None:
    """Lay out the hidden components that type the endpoints, and wire them."""
    models = list(frame.engine.models)
    with gr.Row(visible=False):
        model = gr.Dropdown(models, value=models[0], label="model: one that the server offers")
        prompts = gr.Textbox(label="prompts: one a line; the first leads, unless a reference is given", lines=2)
        prompt = gr.Textbox(label="prompt")
        style = gr.Dropdown([*styles(), "plain"], value="aligned", label="style: the method")
        strength = gr.Slider(0, 4, 1.0, label="strength: 0 off, 1 as published")
        seed = gr.Number(0, precision=0, minimum=0, maximum=2**53, label="seed: picture i has seed + i")
        steps = gr.Number(0, precision=0, minimum=0, label="num_inference_steps: 0 is the model's own")
        size = gr.Textbox("", label="size: 64 or 80x48 pixels; empty is the model's own")
        blocks = gr.Textbox("", label="blocks: where the method acts; empty is the method's own")
        reference = gr.Image(None, type="pil", format="png", label="reference: a picture that leads, or none")
        caption = gr.Textbox("", label="caption: what the reference shows")
        heads = gr.Textbox("L2H0 L3H2", label="heads: such as L2H0 L3H2")
        u = gr.Slider(0, 1, 0.5, label="u: how far attention is perturbed")
        w = gr.Slider(-1, 20, 3.0, label="w: weight of (plain - perturbed)")
        word = gr.Textbox(label="word: one of the prompt's")
        block, head, step = (
            gr.Number(-1, precision=0, label=f"{what}: -1 for all") for what in ("block", "head", "step")
        )
        methods = gr.Textbox(
            "plain,alignedgen", label="methods: names by comma, with settings: alignedgen:strength=0.3"
        )
        sets = gr.File(None, file_types=[".jsonl"], label="sets: a JSONL file, or none for the shipped ones")
        count = gr.Number(4, precision=0, minimum=1, label="count: how many sets, spread evenly")
        pictures = gr.Gallery(label="pictures", format="png")
        plain, perturbed, guided = (gr.Image(format="png", label=text) for text in ("plain", "perturbed", "guided"))
        table, page, data = gr.Markdown(label="table"), gr.File(label="report"), gr.JSON(label="details")
        notes = gr.JSON(label="warnings")
        button = gr.Button()

    def generate_set(
        request: gr.Request, prompts: str, style: str, strength: float, model: str, seed: int, num_inference_steps: int,
        size: str, blocks: str, reference: Any = None, caption: str = "",
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """Draw prompts in one style.

        Args:
            prompts: one a line; the first one leads the style, unless a reference is given.
            style: aligned, aligned-gentle, stylealigned, naive or plain.
            strength: odds of the shared tokens, 0 off, 1 as published.
            model: one that the server offers.
            seed: picture i has seed + i.
            num_inference_steps: 0 is the model's own number.
            size: pixels, 64 or 80x48; empty is the model's own.
            blocks: blocks at which the method acts; empty is the method's own.
            reference: a picture that leads, or none.
            caption: what the reference shows.

        Returns:
            The pictures, the recipe that replays them, and warnings: what had no effect, or was too strong.
        """
        with answering():
            lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
            control: tuple[Control, ...] = ()
            if style != "plain":
                more: dict[str, Any] = {"where": {"blocks": blocks}} if blocks.strip() else {}
                if reference is not None:
                    more["reference"] = Reference(picture=reference, caption=caption)
                control = (_style(style, strength, more),)
            recipe = _recipe(lines, model, seed, num_inference_steps, size, control)
            made, noted = _alone(frame, request, lambda job, visit: _draw(frame, job, recipe))
            pictures = [(p, text) for p, text in zip(made.pictures, lines, strict=True)]
            return pictures, json.loads(made.recipe.dump()), noted

    def guide_heads(
        request: gr.Request, prompt: str, heads: str, u: float, w: float, model: str, seed: int,
        num_inference_steps: int, size: str,
    ) -> tuple[Any, Any, Any, Any, Any]:  # fmt: skip
        """Draw a prompt plain, with single heads perturbed, and guided away from that (SoftPAG).

        Args:
            prompt: what is drawn.
            heads: such as L2H0 L3H2.
            u: how far their attention is perturbed, 0 to 1.
            w: weight of (plain - perturbed).
            model: one that the server offers.
            seed: of the noise.
            num_inference_steps: 0 is the model's own number.
            size: pixels, 64 or 80x48; empty is the model's own.

        Returns:
            The plain, the perturbed and the guided picture, the guided one's recipe, and warnings.
        """
        with answering():
            where = Where(heads=heads)
            controls = ((), (SoftPAG(where=where, u=u, strength=-1.0),), (SoftPAG(where=where, u=u, strength=w),))
            recipes = [_recipe((prompt,), model, seed, num_inference_steps, size, one) for one in controls]
            made, noted = _alone(frame, request, lambda job, visit: [_draw(frame, job, one) for one in recipes])
            return (*(one.pictures[0] for one in made), json.loads(made[-1].recipe.dump()), noted)

    def attention_map(
        request: gr.Request, prompt: str, word: str, block: int, head: int, step: int, model: str, seed: int,
        num_inference_steps: int, size: str,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """Draw a prompt, and show which part of the picture attends to one of its words.

        Args:
            prompt: what is drawn.
            word: a word of the prompt.
            block: a block's number, -1 for all.
            head: a head's number, -1 for all.
            step: a step's number, -1 for all.
            model: one that the server offers.
            seed: of the noise.
            num_inference_steps: 0 is the model's own number.
            size: pixels, 64 or 80x48; empty is the model's own.

        Returns:
            The picture, the map over it, and what every head does: statistics by block and head, and warnings.
        """
        with answering():
            recipe = _recipe((prompt,), model, seed, num_inference_steps, size, ())
            (made, seen), noted = _alone(
                frame, request, lambda job, visit: attention.observed(frame, job, recipe, Where(), (word,))
            )
            chosen = {"block": block, "head": head, "step": step}
            overlay = seen.overlay(word, **{name: None if n is None or n < 0 else int(n) for name, n in chosen.items()})
            figures = {name: np.nanmean(values, 0).round(4) for name, values in seen.statistics.items()}
            told = {
                name: [[None if np.isnan(x) else float(x) for x in row] for row in values]
                for name, values in figures.items()
            }
            return made.pictures[0], overlay, {"blocks": seen.blocks, "statistics": told, "warnings": noted}

    def evaluate_methods(
        request: gr.Request, methods: str, sets: Any = None, count: int = 4, model: str = models[0], seed: int = 0,
        num_inference_steps: int = 0,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """Draw style sets with several methods, measure and compare them.

        Args:
            methods: names by comma, with settings if wanted: plain,alignedgen:strength=0.3.
            sets: a JSONL file of sets, or none for those that the server ships.
            count: how many of them, spread evenly.
            model: one that the server offers.
            seed: of the run.
            num_inference_steps: 0 is the model's own number.

        Returns:
            A Markdown table, the report as one HTML page, and the summary.
        """
        with answering():
            given = {"model": model, "seed": int(seed), "num_inference_steps": int(num_inference_steps) or None}
            config, chosen = evaluate.prepared(frame, methods.split(","), (), sets, int(count), given)
            folder, _ = _alone(frame, request, lambda job, visit: evaluate.perform(frame, job, visit, config, chosen))
            table = (folder / TABLE).read_text(encoding="utf-8")
            return table, str(folder / PAGE), json.loads((folder / SUMMARY).read_bytes())

    def describe() -> Any:
        """What the server offers: models, methods with their settings, head presets, metrics, limits."""
        return {
            "attnctrl": version("attnctrl"),
            "models": models,
            "methods": described(),
            "head_presets": shipped(),
            "metrics": {name: kind.says for name, kind in METRICS.items()},
            "limits": frame.engine.limits.model_dump(),
        }

    common = [model, seed, steps, size]
    wired: list[tuple[Callable[..., Any], list[Any], list[Any]]] = [
        (generate_set, [prompts, style, strength, *common, blocks, reference, caption], [pictures, data, notes]),
        (guide_heads, [prompt, heads, u, w, *common], [plain, perturbed, guided, data, notes]),
        (attention_map, [prompt, word, block, head, step, *common], [plain, guided, data]),
        (evaluate_methods, [methods, sets, count, model, seed, steps], [table, page, data]),
    ]
    for function, inputs, outputs in wired:
        button.click(function, inputs, outputs, api_name=function.__name__, **PUBLIC)
    button.click(describe, None, [data], api_name="describe", queue=False, api_visibility="public")


@contextmanager
def answering() -> Iterator[None]:
    """Turn faults into the sentence that a program gets."""
    try:
        yield
    except Exception as fault:
        raise gr.Error(sentence(fault), print_exception=False) from fault


def _alone(frame: Frame, request: gr.Request, work: Callable[[Job, Visit], Any]) -> tuple[Any, list[str]]:
    """Run work as a job of the caller's session, which goes when the caller leaves; what the controls warned of."""
    visit = frame.visit(request)
    job = visit.jobs["api"] = Job()
    found: list[str] = []
    try:
        return frame.engine.thread.submit(noting, found, lambda: work(job, visit)).result(), found
    finally:
        visit.jobs.pop("api", None)


def _draw(frame: Frame, job: Job, recipe: Recipe) -> Any:
    return frame.engine.draw(job, recipe, "", 1)


def _recipe(prompts: tuple[str, ...], model: str, seed: int, steps: int, size: str, control: Any) -> Recipe:
    if not prompts or not prompts[0].strip():
        raise ControlError("there is no prompt; write at least one")
    number = int(steps) or None
    return Recipe(
        model=model, prompts=prompts, seed=int(seed), num_inference_steps=number, control=control,
        **size_of(size.strip() or None),
    )  # fmt: skip


def styles() -> list[str]:
    """The methods that share a style, by name, and their presets: those that can do without a picture."""
    found = {kind: cls for kind, cls in controls("sharing").items() if not follows(cls)}
    return [*found, *(name for name in presets("sharing") if control_class(name) in found.values())]


def _style(style: str, strength: float, more: dict[str, Any]) -> Control:
    if style not in styles():
        raise ControlError(f"no style is called {style!r}; choose {', '.join([*styles(), 'plain'])}")
    return control_of({"kind": style, "strength": strength, **more})
