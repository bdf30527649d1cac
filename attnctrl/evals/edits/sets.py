"""What an edit of a set is: source, target, region and truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ...descriptions import Description
from ...pictures import Picture
from ...region import Region
from ...words import WORD

Kind = Literal[
    "change object", "change color", "change style", "change background", "add", "remove", "move",
    "change content", "change pose", "change material", "other",
]  # fmt: skip
"""What is edited; the last four are PIE-Bench's alone."""


class Shown(Description):
    """What a picture of the embedded world is to show; None is what the prompt leaves open.

    `subjects` stand to the next one in the `relation`; `colors` has one for each of them, or is empty.
    """

    subjects: tuple[str, ...] = Field(min_length=1)
    colors: tuple[str | None, ...] = ()
    relation: str | None = None
    background: str | None = None
    style: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Shown:
        if self.colors and len(self.colors) != len(self.subjects):
            raise ValueError(f"{len(self.colors)} colors for {len(self.subjects)} subjects; name one for each, or null")
        if len(self.subjects) > 1 and self.relation not in ("left of", "right of", "above", "below"):
            raise ValueError("several subjects need their relation: left of, right of, above or below")
        return self


class EditCase(Description):
    """One line of a JSONL file of edits.

    `source` is the prompt of the picture that is edited, drawn from `seed` (None: of the run's seed and the id), or a
    caption of `picture`; `target` the prompt of the edit. `region`: where it may change, a text is words of the
    source's prompt; None is everywhere. `before` and `after`: what the embedded world's judges are to read. `width` and
    `height` in pixels, None is the run's. `id` names files: letters, digits, . _ -
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    kind: Kind
    source: str = Field(min_length=1)
    target: str = Field(min_length=1)
    region: Region | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    width: int | None = Field(None, gt=0, le=16384)
    height: int | None = Field(None, gt=0, le=16384)
    picture: Picture | None = None
    before: Shown | None = None
    after: Shown | None = None

    @field_validator("region", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"words": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> EditCase:
        if (self.before is None) != (self.after is None):
            raise ValueError("before and after are the truth of both pictures; give both, or none")
        said = _words(self.source)
        for words in words_in(self.region):
            wanted = _words(words)
            if not any(said[i : i + len(wanted)] == wanted for i in range(len(said))):
                raise ValueError(f"the region's words {words!r} are not in the source {self.source!r}")
        return self

    @property
    def part(self) -> str:
        """Under which the report groups it."""
        return self.kind

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is drawn for it."""
        return (self.target,)


def words_in(region: Region | None) -> Iterator[str]:
    """All words that a region asks for, those of its parts too."""
    if region is not None:
        if region.words:
            yield region.words
        for part in region.parts:
            yield from words_in(part)


def _words(text: str) -> list[str]:
    return [match[0].lower() for match in WORD.finditer(text)]
