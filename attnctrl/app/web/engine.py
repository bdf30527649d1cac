"""The one pipeline of the server, behind a lock, and the work that the tabs ask of it."""

from __future__ import annotations

import gc
import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from ...errors import ControlError
from ...pipelines.generate import PictureSet, generate
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.recipe import Recipe
from ..models import load_model
from .jobs import Job
from .limits import Limits

PREVIEWS = 6
"""How often a run's previews are decoded."""


class Engine:
    """Loads the models that the operator allows, one at a time, and draws with them, one job at a time."""

    def __init__(
        self, models: Sequence[str], limits: Limits, device: str | None = None, dtype: str | None = None,
        offload: str = "none",
    ) -> None:  # fmt: skip
        self.models, self.limits = tuple(models), limits
        self._options = device, dtype, offload
        self._lock = threading.RLock()
        # one thread for all: every thread that computes keeps memory of its own
        self.thread = ThreadPoolExecutor(1, "pipeline")
        self._loaded: tuple[str, ControlledPipeline] | None = None

    @contextmanager
    def pipe(self, model: str) -> Iterator[ControlledPipeline]:
        """The pipeline of a model, for this thread alone; ControlError for one that the operator has not allowed."""
        if model not in self.models:
            raise ControlError(f"this server does not offer the model {model!r}; choose {', '.join(self.models)}")
        with self._lock:
            if self._loaded is None or self._loaded[0] != model:
                self._loaded = None
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                self._loaded = model, load_model(model, *self._options)
            yield self._loaded[1]

    def warm(self) -> None:
        """Load the first model beside the page; what goes wrong is said there and at its first use."""

        def load() -> None:
            try:
                with self.pipe(self.models[0]):
                    pass
            except ControlError as fault:
                warnings.warn(str(fault), UserWarning, stacklevel=1)

        self.thread.submit(load)

    def check(self, recipe: Recipe) -> None:
        """Raise ControlError for a recipe beyond the limits."""
        if recipe.model not in self.models:
            raise ControlError(
                f"this server does not offer the model {recipe.model!r}; choose {', '.join(self.models)}"
            )
        size = recipe.width, recipe.height
        self.limits.check(recipe.model, recipe.prompts, *size, recipe.num_inference_steps)
        if recipe.negative_prompt:
            self.limits.check(recipe.model, (recipe.negative_prompt,), *size, recipe.num_inference_steps)

    def draw(self, job: Job, recipe: Recipe, doing: str, steps: int) -> PictureSet:
        """Draw a recipe's pictures as a part of a job of so many of its planned steps, with previews."""
        self.check(recipe)
        progress = job.part(doing, steps)
        job.previews = {}
        with self.pipe(recipe.model) as pipe:
            job.check()
            count = 0

            def watch(numbers: Sequence[int], look: Any) -> None:
                nonlocal count
                count += 1
                if (count - 1) % max(1, self.steps(recipe, pipe) // PREVIEWS) == 0:
                    job.previews |= dict(zip(numbers, look(), strict=True))

            result = generate(pipe, recipe, progress, watch)
        job.previews |= dict(enumerate(result.pictures))
        job.tell(job.reached)
        return result

    @staticmethod
    def steps(recipe: Recipe, pipe: ControlledPipeline) -> int:
        """How many steps a recipe takes."""
        usual: int = inspect.signature(pipe.stock.__call__).parameters["num_inference_steps"].default
        return recipe.num_inference_steps or pipe.settings.num_inference_steps or usual

    def steps_of(self, recipe: Recipe) -> int:
        """The same; loads the model."""
        with self.pipe(recipe.model) as pipe:
            return self.steps(recipe, pipe)


def enlarged(picture: Image.Image, side: int = 256) -> Image.Image:
    """A small picture made larger for the page, by whole factors; others as they are."""
    factor = side // max(picture.size)
    return (
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)
        if factor > 1
        else picture
    )
