"""Style sets: the prompts that are drawn in one style, from JSONL files or shipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field, ValidationError, model_validator

from ...descriptions import Description, explain
from ...errors import ControlError
from ...files import checked_file
from ...pictures import DATA_URI, Picture, read_picture

SHIPPED = Path(__file__).parents[1] / "sets"


class Item(Protocol):
    """One thing of a run: its name, what it shows, and under which the report groups it."""

    @property
    def id(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...
    def model_dump_json(self, *, exclude_defaults: bool = False) -> str: ...


T = TypeVar("T", bound=Item)


class StyleSet(Description):
    """One line of a JSONL file of sets.

    `prompts`: what is drawn, the first one leads; `subjects`: what each shows without the style ("a fox"), for text
    alignment and subject fidelity; `style`: the style's name. `reference`: a picture that leads in place of the first
    prompt, a path beside the file or a data URI, and its `caption`. `id` names files: letters, digits, . _ -
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    prompts: tuple[str, ...] = Field(min_length=1)
    subjects: tuple[str, ...] | None = None
    style: str | None = None
    reference: Picture | None = None
    caption: str = ""

    @model_validator(mode="after")
    def _fits(self) -> StyleSet:
        if self.subjects is not None and len(self.subjects) != len(self.prompts):
            raise ValueError(f"{len(self.subjects)} subjects for {len(self.prompts)} prompts; name one for each")
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("an empty prompt; write what is to be seen")
        if self.caption and self.reference is None:
            raise ValueError("a caption without a reference; add the picture that it describes")
        return self

    @property
    def part(self) -> str:
        """Under which the report groups it."""
        return self.style or ""

    @property
    def seed(self) -> None:
        """None: of the run's seed and the id."""
        return None

    @property
    def followers(self) -> int:
        """How many pictures follow another one."""
        return len(self.prompts) - (self.reference is None)


def shipped() -> list[str]:
    """Names of the files of sets that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.jsonl"))


def read_sets(name: str | Path, paths: bool = True) -> tuple[StyleSet, ...]:
    """Sets from a JSONL file, or shipped ones by name; ControlError names the line of a fault.

    With `paths` off, references by path are refused: the file is a stranger's.
    """
    path = Path(name)
    if path.suffix != ".jsonl" and not path.exists():
        path = SHIPPED / f"{name}.jsonl"
        if not path.exists():
            raise ControlError(f"there are no sets {str(name)!r}; give a .jsonl file, or {' or '.join(shipped())}")
    return read_lines(path, "set", EXAMPLE, partial(_set, path.parent, paths))


def read_lines(path: Path, what: str, example: str, make: Callable[[dict[str, Any]], T]) -> tuple[T, ...]:
    """What `make` gives of every line's JSON object, each with an id of its own; ControlError names the line."""
    try:
        text = checked_file(path, "the sets").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or "it is no text file"
        raise ControlError(f"cannot read the {what}s {path}: {reason}") from None
    found: dict[str, tuple[int, T]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        one = _line(path, number, line, what, example, make)
        if one.id.lower() in found:
            raise ControlError(f"{path}, line {number}: the id {one.id!r} is line {found[one.id.lower()][0]}'s already")
        found[one.id.lower()] = number, one
    if not found:
        raise ControlError(f"{path} holds no {what}; write one JSON object a line, such as {example}")
    return tuple(one for _, one in found.values())


def _line(path: Path, number: int, line: str, what: str, example: str, make: Callable[[dict[str, Any]], T]) -> T:
    try:
        values: Any = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"{'an' if what[0] in 'aeiou' else 'a'} {what} is a JSON object, such as {example}")
        return make(values)
    except json.JSONDecodeError as fault:
        raise ControlError(f"{path}, line {number} is no JSON: {fault.msg} at column {fault.colno}") from None
    except ValidationError as fault:
        raise ControlError(f"{path}, line {number}: {explain(fault)}") from None
    except (ControlError, ValueError, TypeError, OSError) as fault:
        raise ControlError(f"{path}, line {number}: {fault}") from None


def spread(sets: Sequence[T], count: int | None, what: str = "sets") -> tuple[T, ...]:
    """So many of the sets, evenly spread; all for None. ControlError for more than there are."""
    if count is None:
        return tuple(sets)
    if not 1 <= count <= len(sets):
        raise ControlError(f"there are {len(sets)} {what}, and {count} were asked for; choose 1 to {len(sets)}")
    return tuple(sets[i * len(sets) // count] for i in range(count))


EXAMPLE = '{"id": "papercut-1", "prompts": ["a guitar in papercut art style", "a sailboat in papercut art style"]}'


def _set(folder: Path, paths: bool, values: dict[str, Any]) -> StyleSet:
    reference = values.get("reference")
    if reference is not None and not str(reference).startswith(DATA_URI):
        if not paths:
            raise ValueError(f"give the reference inside the file, as {DATA_URI}...")
        if not isinstance(reference, str):
            raise ValueError("reference: give a picture's path beside this file, or its data URI")
        values["reference"] = read_picture(folder / reference)
    return StyleSet.model_validate(values)
