"""How a run draws an edit: its source opened once for all methods, its region, and where it should change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...errors import ControlError
from ...pipelines.captured import Stepped, drawn
from ...pipelines.editing import Opened, differences, edit, mask_of, open_source, took
from ...pipelines.edits import settled
from ...pipelines.generate import check_size
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.recipe import Change, EditRecipe
from ...processors import SharingControl
from ...processors.attaching import host_of
from ...region import Region
from ...words import columns_of
from ..metrics.edits import DrawnEdit
from ..runs.arms import Arm
from ..runs.config import RunConfig
from ..runs.tasks import Drawn, Step
from .jury import Jury, check_known, edited, small
from .likeness import widened
from .replay import replayed
from .sets import EditCase, words_in

SPILL = 4
"""Pixels around what the judge outlines that count neither as edited nor as kept."""


@dataclass(frozen=True)
class Shared:
    """What all methods of an edit share: its source, what the prompt alone makes of the same noise, and its seconds.

    `sound`: whether the judges read the source as asked; None where the truth is not known.
    """

    opened: Opened
    plain: Image.Image
    seconds: float
    sound: bool | None


class EditTask:
    """Edits; `jury` judges those whose truth is known, None judges none."""

    def __init__(self, pipe: ControlledPipeline, jury: Jury | None) -> None:
        self.pipe, self.jury = pipe, jury
        self._last: tuple[Any, Shared] | None = None

    def check(self, config: RunConfig, arm: Arm, one: EditCase) -> None:
        """Raise ControlError for words that the model does not read, sizes that it does not have, truth that no judge
        knows, and methods of sets."""
        if any(isinstance(control, SharingControl) for control in arm.control):
            raise ControlError(f"{arm.name} draws sets of pictures in one style; give it to attnctrl eval style")
        try:
            check_size(self.pipe, one.height, one.width)
            for words in words_in(one.region):
                columns_of(host_of(self.pipe), one.source, (words,))
            for shown in (one.before, one.after):
                if shown is not None and self.jury is not None:
                    check_known(shown)
        except ControlError as fault:
            raise ControlError(f"the edit {one.id!r}: {fault}") from None

    def draw(self, config: RunConfig, arm: Arm, one: EditCase, seed: int, step: Step | None) -> Drawn:
        """The edited picture; beside it the source, the region, and where it should change."""
        assert arm.edits is not None
        options = {**config.options(arm), **{k: v for k in ("width", "height") if (v := getattr(one, k))}}
        stepped = (lambda done, of: step()) if step else None
        shared = self._shared(one, seed, options, stepped)
        opened, region = shared.opened, self._region(arm, one, shared)
        mask = None if region is None else mask_of(region, opened.source, opened.image.size)
        keep = arm.edits.keep and region is not None
        if arm.copies or not (arm.control or keep):
            picture = opened.image if arm.copies else shared.plain
            seconds = 0.0 if arm.copies else shared.seconds
            changed, plainly = (differences(x, opened.image, mask)[0] for x in (picture, shared.plain))
            taken = took(changed, plainly)
        else:
            begin = time.monotonic()
            done = edit(
                self.pipe, opened, one.target, arm.control, region=region, keep=keep, compare=shared.plain,
                stepped=stepped,
            )  # fmt: skip
            picture, taken, seconds = done.image, done.took, time.monotonic() - begin
        source, image = opened.image.convert("RGB"), picture.convert("RGB")
        changing, still = self._parts(one, shared, image)
        named = arm.edits.region == "set" and any(words_in(one.region))
        measured = DrawnEdit(one, source, image, mask, named, changing, still, taken, shared.sound, self.jury)
        beside = {f"sources/{one.id}-source.png": source}
        for name, part in (("region", mask), ("mask", None if changing is None else Image.fromarray(changing))):
            if part is not None:
                beside[f"pictures/{arm.slug}/{one.id}-{name}.png"] = part
        recipe = settled(self.pipe, _recipe(config, arm, one, seed, options, region, keep), [opened.image, picture])
        return Drawn([picture], recipe.dump(), measured, beside, seconds)

    def _shared(self, one: EditCase, seed: int, options: dict[str, Any], stepped: Stepped | None) -> Shared:
        key = one.id, seed, sorted(options.items())
        if self._last is None or self._last[0] != key:
            if one.picture is None:
                opened = open_source(self.pipe, one.source, seed=seed, stepped=stepped, **options)
            else:
                opened = replayed(self.pipe, one.picture, one.source, seed, stepped, **options)
            noise = opened.source.latents[:1].to(host_of(self.pipe).device)
            begin = time.monotonic()
            plain = drawn(self.pipe, one.target, [], {**opened.call, "latents": noise}, stepped=stepped)[0]
            self._last = key, Shared(opened, plain, time.monotonic() - begin, self._sound(one, opened.image))
        return self._last[1]

    def _sound(self, one: EditCase, picture: Image.Image) -> bool | None:
        if self.jury is None or one.before is None:
            return None
        return all(self.jury.right(picture, one.before, small(one)).values())

    def _region(self, arm: Arm, one: EditCase, shared: Shared) -> Region | None:
        """Where an arm's method may change the picture; None for everywhere."""
        way = arm.edits
        assert way is not None
        if way.region == "everywhere" or one.region is None:
            return None
        if way.region == "judged" and shared.sound and (found := self._judged(one, shared.opened.image)) is not None:
            return Region(mask=Image.fromarray(found))
        return one.region if way.threshold is None else with_threshold(one.region, way.threshold)

    def _judged(self, one: EditCase, picture: Image.Image) -> np.ndarray | None:
        """Where the judge sees what the edit is about, bool [H, W]; None where that is no thing."""
        assert self.jury is not None
        assert one.before is not None
        if one.kind == "change background":
            return ~self.jury.where(picture, one.before.subjects, small(one))
        subjects = edited(one)
        return self.jury.where(picture, subjects, small(one)) if subjects else None

    def _parts(self, one: EditCase, shared: Shared, image: Image.Image) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Where the picture should change, and where it should not; None where that is not known.

        By the judge's outline where the truth is known, without SPILL pixels around it, and after a move that of the
        edit as well; else by the set's region.
        """
        if one.region is None or shared.sound is False:
            return None, None
        opened = shared.opened
        if shared.sound and (found := self._judged(one, opened.image)) is not None:
            if one.kind == "move":
                found = found | self.jury.where(image, edited(one), small(one))  # type: ignore[union-attr]
            return found, ~widened(found, SPILL)
        inside = np.asarray(mask_of(one.region, opened.source, opened.image.size)) > 127
        return inside, ~inside


def with_threshold(region: Region, threshold: float) -> Region:
    """A region whose words begin at another threshold, those of its parts too."""
    parts = tuple(with_threshold(part, threshold) for part in region.parts)
    return region.model_copy(update={"parts": parts, **({"threshold": threshold} if region.words else {})})


def _recipe(
    config: RunConfig, arm: Arm, one: EditCase, seed: int, options: dict[str, Any], region: Region | None, keep: bool
) -> EditRecipe:
    """What made an edit; `attnctrl run` replays it, but where the source is a picture."""
    change = Change(prompt=one.target, control=arm.control, region=region, keep=keep)
    return EditRecipe(model=config.model, prompt=one.source, seed=seed, edits=(change,), **options)
