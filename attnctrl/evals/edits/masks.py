"""Regions of words against true masks: overlap by kind of word, threshold, blocks and part of the schedule."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...embedded import intervals
from ...embedded.canvas import Array
from ...errors import ControlError
from ...layout import Step
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.sheets import SheetRow, contact_sheet
from ...processors.attaching import attached, host_of
from ...processors.observing import Observe, Recording
from ...where import Where
from ...words import Prompts, columns_of
from .likeness import overlap
from .replay import noised
from .scenes import KINDS, OUTSIDE, Asked, Known

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
BLOCKS = ("all", "late", "editable")
STEPS = ("all", "0%-33%", "33%-66%", "66%-100%")
SHOWN = 24
"""Words on the sheet."""
Choice = tuple[str, str, float]
"""Blocks, steps, threshold."""


@dataclass(frozen=True)
class Measured:
    """One word of one picture: its overlap with the true mask for every choice, and at best on the grid of tokens."""

    asked: Asked
    prompt: str
    picture: Array
    true: Array
    maps: Mapping[tuple[str, str], Array]
    overlaps: Mapping[Choice, float]
    ceiling: float


def measured(
    pipe: ControlledPipeline, scenes: Sequence[Known], artwork: Mapping[str, Array], steps: int | None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Measured]:  # fmt: skip
    """Draw true pictures, replay them noised under their captions, and compare regions of words with true masks.

    Blocks are BLOCKS and every single one; ControlError where the model has no group of that name.
    """
    groups = _groups(pipe)
    found, begun = [], time.monotonic()
    for number, scene in enumerate(scenes, 1):
        picture, masks = scene.drawn(artwork)
        recording = observed(pipe, Image.fromarray(picture), scene, steps)
        for place, (asked, true) in enumerate(zip(scene.words, masks, strict=True)):
            maps = {(b, s): _mean(recording, groups[b], s, place) for b in groups for s in STEPS}
            overlaps = {
                (*key, threshold): overlap(found_by(asked, values, threshold, true.shape), true)
                for key, values in maps.items()
                for threshold in THRESHOLDS
            }
            tokens = _fitted(true.astype(np.float32), next(iter(maps.values())).shape) > 0.5
            ceiling = overlap(_fitted(tokens.astype(np.float32), true.shape) > 0.5, true)
            found.append(Measured(asked, scene.prompt, picture, true, maps, overlaps, ceiling))
        if progress:
            left = (len(scenes) - number) * (time.monotonic() - begun) / number
            progress(number, len(scenes), left)
    return found


def observed(pipe: ControlledPipeline, picture: Image.Image, scene: Known, steps: int | None) -> Recording:
    """The attention to a scene's words at every step and site while its noised picture is replayed."""
    host = host_of(pipe)
    columns = columns_of(host, scene.prompt, [one.words for one in scene.words])
    watch = Observe(tokens=tuple(word.columns for word in columns), size=None)
    width, height = picture.size
    call: dict[str, Any] = {"width": width, "height": height}
    if steps is not None:
        call["num_inference_steps"] = steps
    noise, led = noised(pipe, picture, scene.case.seed, call)
    filled = pipe.filled({"prompt": scene.prompt, **call, "latents": noise}, [])

    def after(run: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "latents": led(run, step, tensors["latents"])}

    scale, said = filled.get("true_cfg_scale"), Prompts((scene.prompt,), filled)
    with attached(pipe, [watch], guidance_scale=scale, prompts=said) as session:
        assert session
        pipe.stock.__call__(pipe, **filled, output_type="latent", callback_on_step_end=after)
        recording: Recording = session.recorded(watch)
    return recording


def region(values: Array, threshold: float, shape: tuple[int, ...]) -> Array:
    """Where a map [rows, columns] is beyond a threshold between its least and greatest value: bool of `shape`."""
    low, high = values.min(), values.max()
    return _fitted(((values - low) > threshold * (high - low)).astype(np.float32), shape) > 0.5


def found_by(asked: Asked, values: Array, threshold: float, shape: tuple[int, ...]) -> Array:
    """The region that is asked for, by the words' map."""
    inside = region(values, threshold, shape)
    return ~inside if asked.kind == OUTSIDE else inside


def figures(found: Sequence[Measured]) -> dict[str, Any]:
    """Mean overlaps with 95% intervals by kind, and the best choices: of each kind, and of all words of things."""
    kinds = [kind for kind in KINDS if any(one.asked.kind == kind for one in found)]
    by_kind = {}
    for kind in kinds:
        own = [one for one in found if one.asked.kind == kind]
        means = {choice: intervals.mean([one.overlaps[choice] for one in own]) for choice in own[0].overlaps}
        by_kind[kind] = {
            "words": len(own), "ceiling": float(np.mean([one.ceiling for one in own])), "best": best_of(own, BLOCKS),
            "overlap": [{"blocks": b, "steps": s, "threshold": t, "mean": m} for (b, s, t), m in means.items()],
        }  # fmt: skip
    things = [one for one in found if one.asked.objects]
    return {"kinds": by_kind, "things": {"best": best_of(things, BLOCKS), "best of any": best_of(things, None)}}


def best_of(found: Sequence[Measured], blocks: Sequence[str] | None) -> dict[str, Any]:
    """The choice of the greatest mean overlap, among some blocks or all."""
    choices = [choice for choice in found[0].overlaps if blocks is None or choice[0] in blocks]
    chosen = max(choices, key=lambda choice: float(np.mean([one.overlaps[choice] for one in found])))
    values = [one.overlaps[chosen] for one in found]
    return dict(zip(("blocks", "steps", "threshold"), chosen, strict=True)) | {"mean": intervals.mean(values)}


def write(found: Sequence[Measured], model: str, folder: Path) -> list[str]:
    """Write masks.json, table.md and sheet.png into a folder; their names."""
    told = figures(found)
    (folder / "masks.json").write_text(json.dumps({"model": model, **told}, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(found, told, model), encoding="utf-8")
    sheet(found, told["things"]["best"]).save(folder / "sheet.png")
    return ["masks.json", "table.md", "sheet.png"]


def table(found: Sequence[Measured], told: Mapping[str, Any], model: str) -> str:
    """Markdown: by kind of word the best choice, then every threshold over all steps."""
    head = ["words of", "n", "blocks", "steps", "threshold", "overlap", "at best"]
    rows = []
    for kind, own in told["kinds"].items():
        best = own["best"]
        rows.append(
            [kind, own["words"], best["blocks"], best["steps"], best["threshold"], _told(best["mean"]), own["ceiling"]]
        )
    best = told["things"]["best"]
    rows.append(["all things", "", best["blocks"], best["steps"], best["threshold"], _told(best["mean"]), ""])
    text = [
        f"{model}: overlap (intersection over union) of words' regions with true masks, in pixels.",
        _rows(head, rows),
    ]
    for blocks in BLOCKS:
        text += [f"Blocks {blocks}, all steps:", _thresholds(found, blocks)]
    return "\n\n".join(text) + "\n"


def sheet(found: Sequence[Measured], best: Mapping[str, Any]) -> Image.Image:
    """True picture, true mask, map and region of some words of every kind."""
    every = [one for kind in KINDS for one in [o for o in found if o.asked.kind == kind][: SHOWN // len(KINDS)]]
    rows = []
    for one in every:
        values = one.maps[best["blocks"], best["steps"]]
        inside = found_by(one.asked, values, best["threshold"], one.true.shape)
        spread = np.clip((values - values.min()) / max(float(np.ptp(values)), 1e-12), 0, 1)
        parts = [_fitted(spread.astype(np.float32), one.true.shape), one.true, inside]
        greys = [Image.fromarray((np.asarray(part, np.float32) * 255).astype(np.uint8)) for part in parts]
        match = one.overlaps[best["blocks"], best["steps"], best["threshold"]]
        captions = [one.prompt, f"attention to {one.asked.words}", "true mask", f"region: {match:.2f}"]
        rows.append(SheetRow(one.asked.kind, [Image.fromarray(one.picture), *greys], captions))
    return contact_sheet(rows, f"Blocks {best['blocks']}, steps {best['steps']}, threshold {best['threshold']}")


def _groups(pipe: ControlledPipeline) -> dict[str, set[str]]:
    """Labels of the sites that read text, by BLOCKS' names and one by one."""
    sites = [site for site in host_of(pipe).sites if site.stream != "dual"]
    if not sites:
        raise ControlError(f"{type(pipe).__name__} has no block that reads text")
    groups = {name: {sites[i].label for i in Where(blocks=name).select(sites)} for name in BLOCKS}
    return groups | {site.label: {site.label} for site in sites}


def _mean(recording: Recording, labels: set[str], steps: str, word: int) -> Array:
    """A word's map [rows, columns]: mean over heads, some sites and some steps."""
    count = 1 + max(step for step, _ in recording.seen)
    moments = {step: Step(step, count, torch.zeros(())) for step in range(count)}
    kept = [
        seen.maps[word].mean(0)
        for (step, label), seen in recording.seen.items()
        if label in labels and seen.maps is not None and Where(steps=steps).acts_at(moments[step])
    ]
    return np.asarray(sum(kept[1:], kept[0]) / len(kept), np.float64)


def _fitted(values: Array, shape: tuple[int, ...]) -> Array:
    """A map on another grid: means where it is coarser, repeated where it is finer."""
    how = Image.Resampling.BOX if shape[0] < values.shape[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(values).resize((shape[1], shape[0]), how))


def _thresholds(found: Sequence[Measured], blocks: str) -> str:
    rows = []
    for kind in KINDS:
        own = [one for one in found if one.asked.kind == kind]
        means = [float(np.mean([one.overlaps[blocks, "all", t] for one in own])) for t in THRESHOLDS] if own else []
        rows.append([kind, *(f"**{m:.2f}**" if m == max(means) else f"{m:.2f}" for m in means)])
    return _rows(["words of", *map(str, THRESHOLDS)], rows)


def _told(mean: Sequence[float]) -> str:
    return f"{mean[0]:.2f} [{mean[1]:.2f}, {mean[2]:.2f}]"


def _rows(head: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in body]
    lines = [f"| {' | '.join(row)} |" for row in (list(head), *cells)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
