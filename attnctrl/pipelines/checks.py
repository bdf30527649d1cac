"""What is checked of a recipe and of a call before they are drawn, and what is doubtful in them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..conflicts import refuse_conflicts
from ..embedded import MODELS, model_folder
from ..errors import ControlError
from ..given import MOST_GUIDANCE, MOST_PIXELS, MOST_STEPS, number, texts, whole
from .facts import Facts, facts_of, known_model

if TYPE_CHECKING:
    from ..where import Where
    from .recipe import EditRecipe, Recipe

PROMPTS = ("prompt", "prompt_2", "prompt_3")
NEGATIVES = ("negative_prompt", "negative_prompt_2", "negative_prompt_3")
WHOLE = {
    "num_inference_steps": MOST_STEPS, "height": MOST_PIXELS, "width": MOST_PIXELS, "num_images_per_prompt": 1024,
    "max_sequence_length": 4096,
}  # fmt: skip
"""Arguments of a call that are whole numbers, and the most they may be."""
_WORD = re.compile(r"[^\s,.]+")


def check_before(recipe: Recipe | EditRecipe) -> None:
    """Raise ControlError for a recipe that its model, or this machine, cannot draw, before anything is loaded."""
    known_model(recipe.model)
    facts = facts_of(recipe.model)
    for one in recipe.sets():
        check_fits(one, facts)
        if facts is not None:
            facts.check_guidance(one.true_cfg_scale)
            together = len(one.prompts) if one.panorama is not None else min(one.batch_size, len(one.prompts))
            check_memory(facts, together, one.height, one.width)


def check_fits(recipe: Recipe, facts: Facts | None) -> None:
    """Raise ControlError for sizes, blocks, heads and steps that a model does not have."""
    steps = steps_of(recipe, facts)
    for control in recipe.control:
        if not control.off:
            steps_come(control.kind, control.where, steps)
        if facts is not None:
            check_where(control.kind, control.where, facts)
    if facts is not None:
        refuse_conflicts(recipe.control, [one.where.select(facts.sites) for one in recipe.control], facts.sites)
        facts.check_size(recipe.height, recipe.width)


def check_where(name: str, where: Where, facts: Facts) -> None:
    """Raise ControlError for blocks and heads that a model does not have, and where none is chosen."""
    if not where.select(facts.sites):
        raise ControlError(f"{name} selects no block or head: blocks={where.blocks!r}, heads={where.heads!r}")


def warn_of_doubts(model: str, prompts: Sequence[str]) -> None:
    """Warn of empty prompts, and of words that an embedded model does not know."""
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            warnings.warn(f"prompt {i} is empty: the picture shows whatever the model likes", UserWarning, stacklevel=1)
    warn_of_words(model, prompts)


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


def steps_of(recipe: Recipe, facts: Facts | None) -> int | None:
    """How many steps a recipe takes, as far as its model says it."""
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


def check_call(arguments: Mapping[str, Any]) -> None:
    """Raise ControlError for arguments of a pipeline's call that are of another kind, or that no picture bears."""
    for name in (*PROMPTS, *NEGATIVES):
        if arguments.get(name) is not None:
            texts(name, arguments[name])
    for name, most in WHOLE.items():
        if arguments.get(name) is not None:
            whole(name, arguments[name], most=most)
    for name in ("guidance_scale", "true_cfg_scale"):
        if name in arguments:
            number(name, arguments[name], MOST_GUIDANCE)
    if isinstance(seed := arguments.get("generator"), int):
        raise ControlError(f"generator is {seed}; give torch.Generator().manual_seed({seed})")
