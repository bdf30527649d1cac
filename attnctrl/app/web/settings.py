"""What every tab asks: model, size, steps, seed, guidance; blocks, heads and steps under Advanced."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ...pipelines.recipe import Recipe
from ..options import size_of
from .engine import Engine

NAMES = ("model", "seed", "fresh", "size", "steps", "guidance", "true_cfg", "negative", "blocks", "heads", "at_steps")


@dataclass(frozen=True)
class Settings:
    """The components, in the order of NAMES; `read` turns their values into a recipe's."""

    components: tuple[gr.components.Component, ...]

    def __getitem__(self, name: str) -> gr.components.Component:
        return self.components[NAMES.index(name)]

    @staticmethod
    def read(values: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """A recipe's arguments, the seed drawn if a new one is wanted, and the Where that is not left open."""
        given = dict(zip(NAMES, values, strict=True))
        seed = secrets.randbelow(2**31) if given["fresh"] else int(given["seed"] or 0)
        steps = given["steps"]
        recipe = {
            "model": given["model"],
            "seed": seed,
            "num_inference_steps": int(steps) if steps else None,
            "guidance_scale": given["guidance"] or None,  # a number that was emptied comes as 0
            "true_cfg_scale": given["true_cfg"] or None,
            "negative_prompt": (given["negative"] or "").strip() or None,
            **size_of((given["size"] or "").strip() or None),
        }
        where = {"blocks": given["blocks"], "heads": given["heads"], "steps": given["at_steps"]}
        return recipe, {name: text.strip() for name, text in where.items() if text and text.strip()}

    @staticmethod
    def restored(recipe: Recipe, where: Mapping[str, str]) -> list[Any]:
        """Values of the components, as they made a recipe."""
        sides = [side for side in (recipe.width, recipe.height) if side is not None]
        size = "x".join(map(str, sides)) or None
        return [
            recipe.model, recipe.seed, False, size, recipe.num_inference_steps, recipe.guidance_scale,
            recipe.true_cfg_scale, recipe.negative_prompt, where.get("blocks"), where.get("heads"), where.get("steps"),
        ]  # fmt: skip


def settings(engine: Engine, heads: bool = True) -> Settings:
    """Build the components here in the layout."""
    limits = engine.limits
    with gr.Row():
        model = gr.Dropdown(list(engine.models), value=engine.models[0], label="Model", scale=2)
        seed = gr.Number(3, label="Seed", precision=0, minimum=0, maximum=2**53, scale=1)
    fresh = gr.Checkbox(False, label="New seed each time", container=False)
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            size = gr.Textbox(label="Size", placeholder="the model's own; 64 or 80x48", max_lines=1)
            steps = gr.Number(None, label="Steps", precision=0, placeholder="the model's own", maximum=limits.steps)
        with gr.Row():
            guidance = gr.Number(None, label="Guidance scale", placeholder="the model's own")
            true_cfg = gr.Number(None, label="True CFG (FLUX)", placeholder="the model's own")
        negative = gr.Textbox(label="Negative prompt", max_lines=1)
        gr.Markdown("**Where** the method acts; empty: where it usually does.")
        with gr.Row():
            blocks = gr.Textbox(label="Blocks", placeholder="late, 2-5, double:0-1, all", max_lines=1)
            chosen = gr.Textbox(label="Heads", placeholder="L2H0 L3H1, H2, all", max_lines=1, visible=heads)
            at_steps = gr.Textbox(label="At steps", placeholder="0-9, 0%-40%, all", max_lines=1)
    return Settings((model, seed, fresh, size, steps, guidance, true_cfg, negative, blocks, chosen, at_steps))
