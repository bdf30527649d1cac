"""What a model's folder says of it before anything is loaded: sizes, steps, words, and what does not fit."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedded import MODELS, model_folder
from ..errors import ControlError

if TYPE_CHECKING:
    from ..where import Where
    from .recipe import EditRecipe, Recipe

INDEX = "model_index.json"
LARGER = 16
"""A side may be so many times the model's own: beyond it there is no picture, only hours."""
LIVE = 24
"""Features of a token that are alive at once, in widths of the model: queries, keys, values, the wide layer."""
DECODED = 6
"""The same of a pixel in the autoencoder, in its first width."""
_WORD = re.compile(r"[^\s,.]+")


@dataclass(frozen=True)
class Facts:
    """What is known of a model. `unit`: pixels of a token's side; `side`: its own size; `most`: the largest side."""

    model: str
    unit: int
    side: int
    most: int
    width: int
    pixel_width: int
    steps: int | None
    guided: bool

    def check_size(self, height: int | None, width: int | None) -> None:
        """Raise ControlError for a side that is no whole number of tokens, or beyond the model."""
        for name, value in (("height", height), ("width", width)):
            if value is None:
                continue
            if value > self.most:
                raise ControlError(f"{name} {value} px is too much for {self.model}: at most {self.most} px a side")
            if value % self.unit:
                near = max(self.unit, round(value / self.unit) * self.unit)
                raise ControlError(
                    f"{name} {value} is no multiple of {self.unit} px, this model's token; {near} is the nearest"
                )

    def memory(self, pictures: int, height: int | None, width: int | None) -> int:
        """About how many bytes a batch takes beside the weights, in float32."""
        pixels = (height or self.side) * (width or self.side)
        tokens = pixels // self.unit**2
        rows = pictures * (2 if self.guided else 1)
        return 4 * (rows * tokens * self.width * LIVE + pictures * pixels * self.pixel_width * DECODED)


def known_model(model: str) -> None:
    """Raise ControlError for a name that is no embedded model, no folder and no hub id."""
    try:
        there = Path(model).is_dir()
    except (OSError, ValueError):
        there = False
    if there and not (Path(model) / INDEX).is_file():
        raise ControlError(f"{model} is no diffusers model: {INDEX} is missing or unreadable there")
    if model not in MODELS and not there and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise ControlError(
            f"there is no model {model[:80]!r}; give {' or '.join(MODELS)}, a diffusers folder, "
            "or a hub id such as black-forest-labs/FLUX.1-dev"
        )


def facts_of(model: str) -> Facts | None:
    """The facts of a local model; None for what is on the hub, or does not say."""
    folder = model_folder(model) if model in MODELS else Path(model)
    try:
        index, transformer, vae = (
            json.loads((folder / name).read_bytes()) for name in (INDEX, "transformer/config.json", "vae/config.json")
        )
        own = json.loads(path.read_bytes()) if (path := folder / "attnctrl.json").is_file() else {}
        shrunk = 2 ** (len(vae["block_out_channels"]) - 1)
        rotary = "Flux" in str(index["_class_name"])
        unit = shrunk * (2 if rotary else int(transformer["patch_size"]))
        side = int(own.get("height") or (1024 if rotary else int(transformer["sample_size"]) * shrunk))
        table = transformer.get("pos_embed_max_size")
        most = LARGER * side if rotary or not table else int(table) * unit
        wide = int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"])
        guided = float(own.get("true_cfg_scale" if rotary else "guidance_scale", 1 if rotary else 7)) > 1
        steps = own.get("num_inference_steps")
        return Facts(model, unit, side, most, wide, int(vae["block_out_channels"][0]), steps, guided)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_before(recipe: Recipe | EditRecipe) -> None:
    """Raise ControlError for a recipe that its model, or this machine, cannot draw, before anything is loaded."""
    known_model(recipe.model)
    facts = facts_of(recipe.model)
    for one in recipe.sets():
        for control in one.control:
            if not control.off:
                steps_come(control.kind, control.where, steps_of(one))
        if facts is not None:
            facts.check_size(one.height, one.width)
            together = len(one.prompts) if one.panorama is not None else min(one.batch_size, len(one.prompts))
            check_memory(facts, together, one.height, one.width)


def warn_of_doubts(recipe: Recipe | EditRecipe) -> None:
    """Warn of empty prompts, and of words that an embedded model does not know."""
    prompts = tuple(dict.fromkeys(prompt for one in recipe.sets() for prompt in one.prompts))
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            warnings.warn(f"prompt {i} is empty: the picture shows whatever the model likes", UserWarning, stacklevel=1)
    warn_of_words(recipe.model, prompts)


def check_memory(facts: Facts, pictures: int, height: int | None, width: int | None) -> None:
    """Raise ControlError where a batch of pictures takes more memory than this machine has free."""
    import psutil

    needs, has = facts.memory(pictures, height, width), psutil.virtual_memory().available
    if needs > has:
        size = f"{pictures} pictures of {width or facts.side} x {height or facts.side} px"
        raise ControlError(
            f"{size} take about {needs / 2**30:.1f} GiB, and {has / 2**30:.1f} GiB are free; "
            "make them smaller, or fewer at once (batch_size)"
        )


def warn_of_words(model: str, prompts: Sequence[str]) -> None:
    """Warn, once for all, of words that an embedded model has never read."""
    if model not in MODELS:
        return
    known = _vocabulary(model)
    said = dict.fromkeys(word for prompt in prompts for word in _WORD.findall(prompt))
    strange = [word for word in said if not _reads(known, word)]
    if strange:
        whole = sorted(piece[1:] for piece in known if piece.startswith("▁") and len(piece) > 3)
        near = [match for word in strange for match in get_close_matches(word.lower(), whole, n=1)]
        hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
        listed = ", ".join(word[:40] for word in strange[:6])
        text = f"{model} does not know {listed}; {hint}its words are in docs/embedded-models.md"
        warnings.warn(text, UserWarning, stacklevel=1)


def _vocabulary(model: str) -> set[str]:
    """The pieces of whole and half words that the model's T5 was trained on."""
    folder = model_folder(model)
    last = max(folder.glob("tokenizer*"), key=lambda path: path.name)
    vocab: list[tuple[str, float]] = json.loads((last / "tokenizer.json").read_bytes())["model"]["vocab"]
    return {piece for piece, score in vocab if score >= -6}


def _reads(known: set[str], word: str) -> bool:
    half = len(word) // 2
    return f"▁{word}" in known or {f"▁{word[:half]}", word[half:]} <= known


def steps_of(recipe: Recipe) -> int | None:
    """How many steps a recipe takes, as far as its model's folder says it."""
    facts = facts_of(recipe.model)
    return recipe.num_inference_steps or (facts.steps if facts else None)


def steps_come(name: str, where: Where, count: int | None) -> None:
    """Raise ControlError for steps that lie beyond a run of so many."""
    spans = [re.fullmatch(r"(\d+)(?:-\d+)?", item) for item in where.steps.replace(" ", "").split(",")]
    if count is None or not all(spans):
        return
    if min(int(span[1]) for span in spans if span) >= count:
        raise ControlError(
            f"{name} acts at steps {where.steps}, and this run has steps 0-{count - 1}; "
            "name other steps, or a part such as 0%-40%"
        )


def finite_arguments(arguments: dict[str, Any]) -> None:
    """Raise ControlError for guidance that is no number, infinite or negative, and for a number of steps under one."""
    for name in ("guidance_scale", "true_cfg_scale"):
        value = arguments.get(name)
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            raise ControlError(f"{name} is {value}; give a number from 0 on, such as 3.5")
    steps = arguments.get("num_inference_steps")
    if isinstance(steps, int) and steps < 1:
        raise ControlError(f"num_inference_steps is {steps}; give 1 or more")
