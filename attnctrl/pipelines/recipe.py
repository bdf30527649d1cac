"""A recipe: everything that makes a set of pictures, or a picture and its edits, as JSON that can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..control import Control
from ..descriptions import Description, explain
from ..errors import ControlError
from ..files import checked_file
from ..given import MOST_GUIDANCE, MOST_PIXELS, MOST_STEPS, shown
from ..region import Region
from ..registry import control_of, controls_of

PNG_KEY = "attnctrl"
AnyControl = SerializeAsAny[Annotated[Control, BeforeValidator(control_of)]]
"""Any registered control, written as its kind and settings."""


class Made(Description):
    """One picture of a finished recipe: file name, its own seed, and the SHA-256 of its RGB pixels."""

    file: str
    prompt: str
    seed: int
    sha256: str


class Environment(Description):
    """Where a recipe ran. Floating point depends on all of it; the same values replay bit for bit."""

    attnctrl: str
    torch: str
    diffusers: str
    device: str
    dtype: str
    threads: int = Field(ge=1, le=1024)


class RunRecipe(Description):
    """Model, controls and numbers of a run. None is the model's own setting. Sizes in pixels."""

    model: str = "tiny-sd3"
    control: tuple[AnyControl, ...] = ()
    negative_prompt: str | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    height: int | None = Field(None, gt=0, le=MOST_PIXELS)
    width: int | None = Field(None, gt=0, le=MOST_PIXELS)
    num_inference_steps: int | None = Field(None, gt=0, le=MOST_STEPS)
    guidance_scale: float | None = Field(None, ge=0.0, le=MOST_GUIDANCE)
    true_cfg_scale: float | None = Field(None, ge=0.0, le=MOST_GUIDANCE)
    max_sequence_length: int | None = Field(None, gt=0, le=4096)
    environment: Environment | None = None
    made: tuple[Made, ...] = ()

    @field_validator("prompts", "control", mode="before", check_fields=False)
    @classmethod
    def _several(cls, value: Any, info: ValidationInfo) -> Any:
        """In Python one prompt, one control or a control's class is plain enough; in a file they are lists."""
        if info.mode != "python":
            return value
        if info.field_name == "prompts" or isinstance(value, (type, Control)):
            value = (value,) if isinstance(value, (str, type, Control)) else value
        if isinstance(value, (list, tuple)):
            return tuple(controls_of(one)[0] if isinstance(one, type) else one for one in value)
        return value

    def arguments(self) -> dict[str, Any]:
        """The pipeline arguments that the recipe sets."""
        names = ("negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "true_cfg_scale")
        values = {name: getattr(self, name) for name in (*names, "max_sequence_length")}
        return {name: value for name, value in values.items() if value is not None}

    def dump(self) -> str:
        """JSON text with every value written out, so that later defaults do not change a replay."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    def same_as(self, earlier: RunRecipe) -> int:
        """How many of its pictures equal those that `earlier` recorded, pixel for pixel."""
        return sum(a.sha256 == b.sha256 for a, b in zip(self.made, earlier.made, strict=False))

    @field_validator("prompts", "prompt", "negative_prompt", mode="after", check_fields=False)
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Half a character, as a terminal in another encoding makes it, is no text."""
        for text in (value,) if isinstance(value, str) else value or ():
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError("holds bytes that are no UTF-8 text; type it anew")
        return value


class Recipe(RunRecipe):
    """A set: its prompts beside the run's numbers.

    Picture i has seed + i; with more than `batch_size` prompts the first one (or the reference picture) is in every
    batch, so that all follow the same reference. `panorama`: the prompts are windows of one wide picture instead, which
    overlap by this share of a window.
    """

    recipe: int = Field(1, ge=1, le=1)
    prompts: tuple[str, ...] = Field(min_length=1, max_length=10_000)
    batch_size: int = Field(8, ge=2, le=1024)
    panorama: float | None = Field(None, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _windows(self) -> Recipe:
        if self.panorama is not None and len(self.prompts) < 2:
            raise ValueError("a panorama needs two prompts or more, one for each window; repeat one for a wide picture")
        return self

    @property
    def pictures(self) -> tuple[str, ...]:
        """What its pictures show, one by one."""
        return self.prompts if self.panorama is None else (" | ".join(self.prompts),)

    @property
    def said(self) -> tuple[str, ...]:
        """All that it asks for."""
        return self.prompts

    def sets(self) -> list[Recipe]:
        """Itself: what is checked of every recipe."""
        return [self]


class Change(Description):
    """One edit of an EditRecipe: picture `of` (0 is the source, n the n-th edit) under another prompt.

    `region`, `keep`: as in `attnctrl.edit`.
    """

    prompt: str
    of: int = Field(0, ge=0)
    control: tuple[AnyControl, ...] = ()
    region: Region | None = None
    keep: bool = False


class EditRecipe(RunRecipe):
    """A picture and its edits: the source's prompt and controls beside the run's numbers, and the edits in order."""

    edit_recipe: int = Field(1, ge=1, le=1)
    prompt: str
    edits: tuple[Change, ...] = Field(min_length=1, max_length=1000)

    @field_validator("edits", mode="after")
    @classmethod
    def _of_earlier(cls, value: tuple[Change, ...]) -> tuple[Change, ...]:
        for number, one in enumerate(value, 1):
            if one.of >= number:
                raise ValueError(f"edit {number} is of picture {one.of}, which comes later; 0 is the source")
        return value

    @property
    def said(self) -> tuple[str, ...]:
        """All that it asks for, each once."""
        return tuple(dict.fromkeys((self.prompt, *(one.prompt for one in self.edits))))

    def sets(self) -> list[Recipe]:
        """Every run as a set, for what is checked of sets; an edit's holds the source's row too."""
        numbers = {**self.arguments(), "model": self.model, "seed": self.seed}
        source = Recipe(prompts=(self.prompt,), control=self.control, **numbers)
        return [source, *(Recipe(prompts=(self.prompt, e.prompt), control=e.control, **numbers) for e in self.edits)]


def read_recipe(path: str | Path) -> Recipe | EditRecipe:
    """A recipe, or one of edits, from its JSON file or from a PNG that was made here; ControlError says what is wrong
    with it."""
    if not isinstance(path, (str, Path)):
        raise ControlError(f"a recipe is read from a file, not {shown(path)}; give its path")
    path = checked_file(path, "the recipe")
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as image:
                text = image.info.get(PNG_KEY)
            if text is None:
                raise ControlError(f"{path} carries no recipe; use a PNG made by attnctrl, or its recipe.json")
        else:
            text = path.read_text(encoding="utf-8")
        return (EditRecipe if _of_edits(text) else Recipe).model_validate_json(text)
    except ValidationError as fault:
        raise ControlError(f"{path}: {explain(fault)}") from None
    except (OSError, UnicodeDecodeError, SyntaxError, Image.DecompressionBombError) as fault:
        reason = getattr(fault, "strerror", None) or "it is no text file"
        raise ControlError(f"cannot read the recipe {path}: {reason}") from None


def _of_edits(text: str) -> bool:
    """Whether a recipe's text says that it is one of edits."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and "edit_recipe" in body
