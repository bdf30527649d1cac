"""Capturing a picture's run for editing: its latents at every step, and where its words are, by one more attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..attention import attend_branches, of_row
from ..branch import Branch
from ..control import Call, Control
from ..effect import Attended, Effect
from ..errors import ControlError
from ..where import Where
from .observing import uncompiled


class Capture(Control):
    """Keep one picture's latents and the attention to its words; changes nothing, holds no map of a single block.

    The share of each image token's attention that falls on some text columns is one attention whose values say which
    column a key is (docs/design.md). Under guidance the conditional prediction is read. Take the `Captured` from the
    session: `session.recorded(control)`.
    """

    kind: Literal["capture"] = "capture"
    where: Where = Where(blocks="late")
    columns: tuple[int, ...] = Field((), description="the text's columns that are looked for")
    row: int = Field(0, ge=0, description="the picture's number in the batch")

    order: ClassVar[int] = 100

    def check(self, call: Call) -> None:
        """Raise ControlError for a solver that asks twice a step, and for a view of a part of the picture."""
        if call.step.evaluation:
            raise ControlError("a picture is opened with a solver that asks the model once a step, such as Euler's")
        if call.layout.shown is not None:
            raise ControlError("capture maps the whole grid, and another control's view shows a part of it")

    def plan(self, call: Call) -> Effect:
        """The row to watch, in the call of a step that carries the prompts."""
        if call.perturbed or call.step.call or not any(call.conditional):
            return Effect()
        found: Captured | None = call.bank.get(self, "recording")
        if found is None:
            found = Captured(call.layout.grid)
            call.bank.keep(self, "recording", found)
        row = call.groups[call.conditional.index(True)][0] + len(call.guests) + self.row
        latents = call.arguments[call.edge.batched.latents][row]
        found.latents.append(latents[: call.layout.size].cpu() if latents.ndim == 2 else latents.cpu())
        start, stop = call.layout.text
        marked = call.once(("columns", id(self)), lambda: call.index([start + one for one in self.columns]))
        return CapturingEffect(row, marked, found) if stop > start and self.columns else Effect()


@dataclass
class Captured:
    """One run: latents [...] by step, and the sum over `count` sites and steps of the attention [columns, S_img]."""

    grid: tuple[int, ...]
    latents: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    count: int = 0

    def add(self, attention: Tensor) -> None:
        """One more site."""
        self.total = attention if self.total is None else self.total + attention
        self.count += 1


@dataclass(frozen=True, eq=False)
class CapturingEffect(Effect):
    """Reads the attention to `columns` [n] of the joint sequence, and passes the site's own result on."""

    row: int
    columns: Tensor
    captured: Captured

    def output(self, at: Attended) -> Tensor:
        """The result, unchanged."""
        self._read(at)
        return at.out()

    @uncompiled
    def _read(self, at: Attended) -> None:
        if at.layout.text != (0, 0):
            self.captured.add(attention_on(at, self.row, self.columns).mean(1).T.cpu())


def attention_on(at: Attended, row: int, columns: Tensor) -> Tensor:
    """The share of one row's image queries' attention [S_img, H, n] on each of n tokens of its own sequence.

    An attention whose values say which token a key is, so that no map of all keys is made (docs/design.md).
    """
    start, stop = at.layout.image
    return torch.cat([_shares(at, row, some)[start:stop] for some in columns.split(at.v.shape[-1])], dim=-1)


def _shares(at: Attended, row: int, tokens: Tensor) -> Tensor:
    """The same of every query [S, H, n], for at most as many tokens as values are wide."""
    marks = at.v.new_zeros(1, at.k.shape[1], 1, at.v.shape[-1])
    marks[0, tokens, 0, torch.arange(len(tokens), device=tokens.device)] = 1
    marks = marks.expand(-1, -1, at.v.shape[2], -1)

    def marked(branch: Branch) -> Tensor | None:
        if branch.key is at.k:
            return marks
        return None if branch.tokens is None else marks[:, branch.tokens]

    whole = attend_branches(at.q[row : row + 1], of_row(at.branches, row, marked), None)
    return whole[0, :, :, : len(tokens)].float()
