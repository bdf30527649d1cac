"""What a run does with one item under one method: the protocol, and style sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from ...errors import ControlError
from ...pipelines.generate import generate
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.recipe import Recipe
from ...processors.editing import EditControl
from ..metrics.metric import DrawnSet
from .arms import Arm
from .config import RunConfig
from .sets import StyleSet

Step = Callable[[], None]


@dataclass(frozen=True)
class Drawn:
    """A drawn item: its pictures, what replays them, and what metrics measure (DrawnSet or DrawnEdit).

    `beside`: further pictures by the name of their file below the run's folder. `seconds`: what the item took, where
    other items share some of its work.
    """

    pictures: Sequence[Image.Image]
    recipe: str
    measured: Any
    beside: dict[str, Image.Image] = field(default_factory=dict)
    seconds: float | None = None


class Task(Protocol):
    """One kind of run."""

    def check(self, config: RunConfig, arm: Arm, one: Any) -> None:
        """Raise ControlError for an item that an arm cannot draw."""
        ...

    def draw(self, config: RunConfig, arm: Arm, one: Any, seed: int, step: Step | None) -> Drawn:
        """Draw an item; step() is called after every solver step."""
        ...


class StyleTask:
    """Sets of pictures in one style."""

    def __init__(self, pipe: ControlledPipeline) -> None:
        self.pipe = pipe

    def check(self, config: RunConfig, arm: Arm, one: Any) -> None:
        """As `Arm.check`; ControlError for a method that edits."""
        if any(isinstance(control, EditControl) for control in arm.control):
            raise ControlError(f"{arm.name} edits pictures, and a set has none; give it to attnctrl eval edit")
        arm.check(one)

    def draw(self, config: RunConfig, arm: Arm, one: StyleSet, seed: int, step: Step | None) -> Drawn:
        """A set's pictures; copies are of its leader."""
        prompts = one.prompts[:1] if arm.copies and one.reference is None else one.prompts
        recipe = Recipe(
            model=config.model, prompts=prompts, control=arm.on(one), seed=seed, batch_size=config.batch_size,
            **config.options(arm),
        )  # fmt: skip
        result = generate(self.pipe, recipe, (lambda done, total: step()) if step else None)
        pictures = list(result.pictures)
        if arm.copies:
            leader = pictures[0] if one.reference is None else one.reference.resize(pictures[0].size)
            pictures = [leader] * len(one.prompts)
        measured = DrawnSet(
            prompts=one.prompts, pictures=[picture.convert("RGB") for picture in pictures], subjects=one.subjects,
            style=one.style, reference=one.reference, caption=one.caption,
        )  # fmt: skip
        return Drawn(pictures, result.recipe.dump(), measured)
