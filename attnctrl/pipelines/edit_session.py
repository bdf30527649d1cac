"""`EditSession`: a picture opened once and edited many times, with undo and redo, its memory bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..control import Control
from ..errors import ControlError
from ..processors.attaching import Controls
from ..region import Region
from ..registry import controls_of
from .editing import Edited, Opened, edit, open_source
from .mixin import ControlledPipeline
from .recipe import Change, EditRecipe

LIMIT = 2**30
"""Bytes that a session's pictures take at most, unless it is told otherwise."""


@dataclass(frozen=True)
class _Moment:
    """A picture of a session, and its number in the recipe."""

    opened: Opened
    number: int


class EditSession:
    """A picture, `current`, and the edits that led to it; an edit is the source of the next one.

    limit: bytes of all pictures that undo can go back to; the oldest are let go beyond it. A session's `recipe` holds
    every edit that was made, and replays bit for bit.
    """

    def __init__(
        self,
        pipe: ControlledPipeline,
        prompt: str,
        *,
        model: str = "tiny-sd3",
        seed: int = 0,
        control: Controls = None,
        limit: int = LIMIT,
        **call: Any,
    ) -> None:
        self.pipe, self.limit = pipe, limit
        self._begun = EditRecipe.model_construct(
            prompt=prompt, model=model, seed=seed, control=tuple(controls_of(control)), edits=(), **call
        )
        opened = open_source(pipe, prompt, seed=seed, control=control, **call)
        self._past, self._future = [_Moment(opened, 0)], list[_Moment]()
        self._changes: list[Change] = []

    @property
    def current(self) -> Opened:
        """The picture as it stands."""
        return self._past[-1].opened

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures that undo and redo can reach."""
        return sum(one.opened.nbytes for one in (*self._past, *self._future))

    def edit(
        self, prompt: str, control: Controls = None, *, region: Region | str | None = None, keep: bool = False,
        compare: bool = True,
    ) -> Edited:  # fmt: skip
        """Edit the current picture, as `attnctrl.edit` does; what was undone can no longer be redone."""
        controls: tuple[Control, ...] = tuple(controls_of(control))
        region = Region(words=region) if isinstance(region, str) else region
        done = edit(self.pipe, self.current, prompt, controls, region=region, keep=keep, compare=compare)
        self._changes.append(
            Change(prompt=prompt, of=self._past[-1].number, control=controls, region=region, keep=keep)
        )
        self._past.append(_Moment(done, len(self._changes)))
        self._future.clear()
        while len(self._past) > 2 and self.nbytes > self.limit:
            del self._past[0]
        return done

    def undo(self) -> Opened:
        """Go back by an edit; ControlError at the beginning."""
        if len(self._past) == 1:
            began = "the picture is as it was opened" if self._past[0].number == 0 else "older edits were let go"
            raise ControlError(f"there is nothing to undo: {began}")
        self._future.append(self._past.pop())
        return self.current

    def redo(self) -> Opened:
        """Take the last undo back; ControlError if there is none."""
        if not self._future:
            raise ControlError("there is nothing to redo: no edit was undone since the last one")
        self._past.append(self._future.pop())
        return self.current

    @property
    def recipe(self) -> EditRecipe:
        """All edits that were made, whether undone or not; ControlError before the first."""
        if not self._changes:
            raise ControlError("nothing was edited yet, so there is no recipe of edits")
        given = {name: getattr(self._begun, name) for name in self._begun.model_fields_set}
        return EditRecipe(**{**given, "edits": tuple(self._changes)})
