"""`observe`: one run of a pipeline that also says where each word is read, and what every head does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import ControlError, NoEffectWarning
from ..given import shown, texts, whole
from ..processors.attaching import Controls, attached, host_of
from ..processors.observing import COMPILED, STATISTICS, Observe, Recording
from ..region import Region
from ..registry import controls_of
from ..where import Where
from ..words import Prompts, Word, columns_of, words_of
from .checks import check_call
from .mixin import stock_call
from .overlays import overlaid

LETTERS, LITTLE = 3, frozenset({"and", "for", "from", "her", "his", "its", "the", "their", "with"})
"""Shorter words, and little ones, are not observed unless they are asked for."""


@dataclass(frozen=True, eq=False)
class Observation:
    """A picture, and what its image tokens attended to.

    `images` are all pictures of the run, `image` the observed one. `maps` [steps, blocks, words, heads, rows, columns]
    are probabilities: the share of an image token's attention that goes to a word, all its columns summed.
    `statistics`: by name (`attnctrl.processors.observing.STATISTICS`) an array [steps, blocks, heads]. NaN stands
    where nothing was observed: heads and sites that `where` leaves out, words at SD3.5's image-only sites. `blocks`
    are labels (`L3 (joint 3)`), `numbers` their global block numbers, `grid` the image's tokens (rows, columns).
    """

    images: list[Image.Image]
    row: int
    prompt: str
    words: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]
    grid: tuple[int, ...]
    blocks: tuple[str, ...]
    numbers: tuple[int, ...]
    steps: tuple[int, ...]
    maps: np.ndarray
    statistics: dict[str, np.ndarray]

    @property
    def image(self) -> Image.Image:
        """The observed picture."""
        return self.images[self.row]

    def map(
        self, word: str, block: int | str | None = None, head: int | None = None, step: int | None = None
    ) -> np.ndarray:
        """Attention to a word [rows, columns], float32: the mean over blocks, heads or steps that are left None.

        `block`: a global number or a label; `step`: the solver's. ControlError for what was not observed.
        """
        steps = slice(None) if step is None else [_place("step", step, self.steps)]
        blocks = (
            slice(None)
            if block is None
            else [_place("block", block, self.blocks if isinstance(block, str) else self.numbers)]
        )
        heads = slice(None) if head is None else [_place("head", head, range(self.maps.shape[3]))]
        chosen = self.maps[steps][:, blocks][:, :, _place("word", word.lower(), [w.lower() for w in self.words])]
        rows, columns = chosen.shape[-2:]
        flat = chosen[:, :, heads].reshape(-1, rows, columns)
        flat = flat[~np.isnan(flat).any((1, 2))]
        if not len(flat):
            raise ControlError(f"nothing was observed of {word!r} there (block {block}, head {head}, step {step})")
        result: np.ndarray = flat.mean(0, dtype=np.float32)
        return result

    def region(
        self,
        word: str,
        threshold: float = 0.5,
        block: int | str | None = None,
        head: int | None = None,
        step: int | None = None,
        edge: float = 0.0,
    ) -> Region:
        """Where the map lies above `threshold` between its least and its greatest value, as a region of the picture."""
        found = self.map(word, block, head, step)
        low, high = float(found.min()), float(found.max())
        inside = (found - low) > threshold * (high - low)
        shown = Image.fromarray((inside * 255).astype(np.uint8)).resize(self.image.size, Image.Resampling.NEAREST)
        return Region(mask=shown, edge=edge)

    def overlay(
        self,
        word: str,
        block: int | str | None = None,
        head: int | None = None,
        step: int | None = None,
        top: float | None = None,
    ) -> Image.Image:
        """The map in colour over the dimmed picture, at least 384 px; brightest is `top` (None: the map's maximum)."""
        return overlaid(self.image, self.map(word, block, head, step), top)


def observe(
    pipe: Any,
    prompt: str | Sequence[str],
    words: Sequence[str] | str | None = None,
    *,
    control: Controls = None,
    where: Where | None = None,
    row: int = 0,
    size: int | None = 32,
    dtype: Literal["float32", "float16"] = "float32",
    **call: Any,
) -> Observation:
    """Run a pipeline once and record what one of its pictures attends to; the pictures stay bit-equal.

    pipe: a FLUX or SD3 pipeline, of attnctrl or of diffusers. words: words or phrases of the prompt; None: all of three
    letters or more but "and", "the", "with" and their like. control: controls of the run; keys that they share count in
    every share. where: blocks, heads and steps. row: which picture of the run; the j-th of prompt i is i n + j, with n
    `num_images_per_prompt`. size: maps are averaged down to at most so many tokens a side. call: the pipeline's own.
    Raises ControlError for unknown words, words that the text encoders cut off, and what no picture comes of.
    """
    for name, usual in (("output_type", "pil"), ("return_dict", True)):
        if call.pop(name, usual) != usual:
            raise ControlError(f"observe lays maps over pictures; leave {name} out")
    controls = controls_of(control)
    if not hasattr(pipe, "transformer"):
        raise ControlError(f"observe takes a pipeline first and then the prompt, not {shown(pipe)}")
    words = (words,) if isinstance(words, str) else words
    whole("row", row, least=0)
    call = {"prompt": list(texts("prompt", prompt)), **call}
    check_call(call)
    run, filled = stock_call(pipe, call, controls)
    images = filled.get("num_images_per_prompt") or 1
    prompts = filled["prompt"]
    if not 0 <= row < images * len(prompts):
        raise ControlError(f"observe: row {row} is not among the {images * len(prompts)} pictures; it counts from 0")
    host, said_all = host_of(pipe), Prompts(tuple(prompts), filled)
    said, own = prompts[row // images], said_all.of(row // images)
    chosen = columns_of(host, said, words, **own) if words is not None else _usual(words_of(host, said, **own))
    tokens = tuple(word.columns for word in chosen)
    watch = Observe(tokens=tokens, row=row, size=size, dtype=dtype, where=where or Where())
    scale = filled.get("true_cfg_scale")
    with attached(
        pipe, [*controls, watch], images_per_prompt=images, guidance_scale=scale, prompts=said_all
    ) as session:
        assert session
        try:
            pictures = run(pipe, **filled).images
        except RuntimeError as fault:
            if COMPILED in str(fault):
                raise ControlError(COMPILED) from None
            raise
        recording: Recording = session.recorded(watch)
    return gathered(recording, pictures, row, said, chosen)


def gathered(
    recording: Recording, images: list[Image.Image], row: int, prompt: str, words: Sequence[Word]
) -> Observation:
    """A recording as dense arrays beside its pictures; empties the recording."""
    steps = tuple(sorted({step for step, _ in recording.seen}))
    blocks = tuple(recording.sites)
    heads = max(count for _, count in recording.sites.values())
    maps = [one.maps for one in recording.seen.values() if one.maps is not None]
    grid = tuple(maps[0].shape[-2:]) if maps else recording.grid
    kind = maps[0].numpy().dtype if maps else np.float32
    whole = np.full((len(steps), len(blocks), len(words), heads, *grid), np.nan, kind)
    figures = np.full((len(STATISTICS), len(steps), len(blocks), heads), np.nan, np.float32)
    while recording.seen:
        (step, label), one = recording.seen.popitem()
        at = steps.index(step), blocks.index(label)
        figures[:, at[0], at[1], list(one.heads)] = one.statistics.numpy()
        if one.maps is not None:
            whole[at][:, list(one.heads)] = one.maps.numpy()
    return Observation(
        images=list(images),
        row=row,
        prompt=prompt,
        words=tuple(word.text for word in words),
        columns=tuple(word.columns for word in words),
        grid=recording.grid,
        blocks=blocks,
        numbers=tuple(number for number, _ in recording.sites.values()),
        steps=steps,
        maps=whole,
        statistics=dict(zip(STATISTICS, figures, strict=True)),
    )


def _usual(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words that say something, or all if there are none; a warning names those that were cut off."""
    wanted = [word for word in words if len(word.text) >= LETTERS and word.text.lower() not in LITTLE] or list(words)
    cut = [word.text for word in wanted if not word.columns]
    if cut:
        text = f"beyond the text length, not read and not observed: {', '.join(cut)}"
        warnings.warn(text, NoEffectWarning, stacklevel=3)
    return tuple(word for word in wanted if word.columns)


def _place(what: str, wanted: Any, known: Sequence[Any]) -> int:
    if wanted not in known:
        raise ControlError(f"{what} {wanted!r} was not observed; there is {', '.join(str(one) for one in known)}")
    return list(known).index(wanted)
