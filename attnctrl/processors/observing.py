"""Observing attention: where each word is read from the image, and statistics of every head; nothing changes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..attention import Branch
from ..control import Attended, Call, Control, Effect
from ..errors import ControlError
from ..layout import TokenLayout
from ..statistics import widened

QUERY_CHUNK = 64
"""Image queries whose attention is held at once."""
STATISTICS = ("text", "image", "shared", "entropy", "distance", "near")
"""Shares of attention on text, on the own image and on everything else (references, condition images); entropy as a
share of ln(keys); mean distance to the attended image token in grid widths; share on the own token's 3 x 3 tokens."""
LOWEST, TINY = -1e30, 1e-30
COMPILED = "attention cannot be recorded in blocks compiled with fullgraph=True; allow graph breaks, or do not compile"
# torch before 2.8 cannot say why
_SAYING: Any = {"reason": COMPILED} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}


class Observe(Control):
    """Record, of one picture, how much its image tokens attend to words, and what every head does; changes nothing.

    Under classifier-free guidance only the conditional prediction is recorded, and never a guide's perturbed pass. Take
    the `Recording` from the session: `session.recorded(control)`. Compiled blocks must allow graph breaks.
    """

    kind: Literal["observe"] = "observe"
    tokens: tuple[tuple[int, ...], ...] = Field((), description="by word: its columns within the text segment")
    row: int = Field(0, ge=0, description="the picture's number in the batch")
    size: int | None = Field(32, ge=1, description="maps are averaged down to so many tokens a side; none: the grid's")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored maps")

    order: ClassVar[int] = 100

    @field_validator("tokens")
    @classmethod
    def _columns(cls, value: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        if any(not word or min(word) < 0 or len(set(word)) < len(word) for word in value):
            raise ValueError("every word needs text columns from 0 on, each once")
        return value

    def check(self, call: Call) -> None:
        """Raise ControlError for a picture that is not in the batch and columns beyond the text."""
        pictures = call.groups[0][1] - call.groups[0][0] - len(call.added)
        if self.row >= pictures:
            raise ControlError(f"observe: picture {self.row} is not in this batch of {pictures}; row counts from 0")
        length = call.layout.text[1] - call.layout.text[0]
        beyond = sorted({column for word in self.tokens for column in word if column >= length})
        if beyond:
            raise ControlError(f"observe: text column {beyond[0]} is beyond this call's {length} text tokens")

    def plan(self, call: Call) -> Effect:
        """The row to watch, in the first call of a step that carries the prompts."""
        if call.perturbed or call.step.call or not any(call.conditional):
            return Effect()
        recording = call.memory.setdefault(("recording", id(self)), Recording(call.layout.grid, self.tokens))
        start, _ = call.groups[call.conditional.index(True)]
        return ObservingEffect(self, start + len(call.added) + self.row, call.step.index, recording)


@dataclass(frozen=True)
class Seen:
    """One site at one step: its observed `heads`, `maps` [words, H, h, w] (None where no text is read) and `statistics`
    [len(STATISTICS), H], a mean over image queries; on the CPU."""

    heads: tuple[int, ...]
    maps: Tensor | None
    statistics: Tensor


@dataclass
class Recording:
    """What one run showed: `seen` by (step, label of the site), and the sites as label: (block, number of heads)."""

    grid: tuple[int, int]
    tokens: tuple[tuple[int, ...], ...]
    sites: dict[str, tuple[int, int]] = field(default_factory=dict)
    seen: dict[tuple[int, str], Seen] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ObservingEffect(Effect):
    """Writes what a site attends to into the recording and passes the site's own result on."""

    control: Observe
    row: int
    step: int
    recording: Recording

    def output(self, at: Attended) -> Tensor:
        """The result, unchanged."""
        self._record(at)
        return at.out()

    @torch.compiler.disable(**_SAYING)
    def _record(self, at: Attended) -> None:
        heads = tuple(range(at.site.heads)) if at.gate is None else tuple(at.gate.nonzero().flatten().tolist())
        maps, statistics = observed(at, self.row, heads, self.control.tokens)
        if maps is not None:
            side = self.control.size or max(maps.shape[-2:])
            rows, columns = (min(side, length) for length in maps.shape[-2:])
            maps = adaptive_avg_pool2d(maps, (rows, columns)).to("cpu", getattr(torch, self.control.dtype))
        self.recording.sites[at.site.label] = (at.site.index, at.site.heads)
        self.recording.seen[self.step, at.site.label] = Seen(heads, maps, statistics.cpu())


@torch.no_grad()
def observed(
    at: Attended, row: int, heads: tuple[int, ...], words: tuple[tuple[int, ...], ...]
) -> tuple[Tensor | None, Tensor]:
    """Maps [words, H, rows, columns] and statistics [len(STATISTICS), H] of a batch row's image queries.

    p_qk = exp(q k / sqrt(D) - lse_q), lse_q over the row's own keys and every branch that it reads; a word's map is
    the sum of p over its columns. In chunks of 64 queries: the largest tensor is [H, 64, keys].
    """
    index = torch.tensor(heads, device=at.q.device)
    queries = widened(at.layout.image_of(at.q)[row][:, index]).transpose(0, 1) * at.q.shape[-1] ** -0.5
    own = widened(at.k[row][:, index]).permute(1, 2, 0)
    others = [part for branch in at.branches if (part := _read(branch, row, index)) is not None]
    keys = own.new_full((len(heads),), own.shape[-1])
    for key, bias in others:
        keys += (bias > -torch.inf) * key.shape[-1]
    reads_text = own.shape[-1] > queries.shape[1]
    text, condition = (at.layout.text if reads_text else (0, 0)), at.layout.condition or (0, 0)
    chosen = own.new_zeros(text[1] - text[0], len(words))
    for i, word in enumerate(words if reads_text else ()):
        chosen[list(word), i] = 1
    maps, sums = [], own.new_zeros(len(STATISTICS), len(heads))
    for start in range(0, queries.shape[1], QUERY_CHUNK):
        part = queries[:, start : start + QUERY_CHUNK]
        logits = [part @ own, *(part @ key + bias[:, None, None] for key, bias in others)]
        lse = torch.stack([x.logsumexp(-1) for x in logits]).logsumexp(0)
        p, *elsewhere = [(x - lse[..., None]).exp() for x in logits]
        on_text, on_image = p[..., slice(*text)], p[..., slice(*at.layout.image)]
        distance, near = _distances(at.layout, start, part.shape[1], p)
        mean_logit = _added((a * x.clamp(min=LOWEST)).sum(-1) for a, x in zip((p, *elsewhere), logits, strict=True))
        figures = (
            on_text.sum(-1),
            on_image.sum(-1),
            _added(x.sum(-1) for x in (p[..., slice(*condition)], *elsewhere)),
            (lse - mean_logit) / keys.log()[:, None],
            (on_image * distance).sum(-1) / on_image.sum(-1).clamp(min=TINY),
            (on_image * near).sum(-1),
        )
        sums += torch.stack(figures).sum(-1)
        maps.append(on_text @ chosen)
    whole = torch.cat(maps, dim=1).permute(2, 0, 1).unflatten(-1, at.layout.grid) if reads_text and words else None
    return whole, sums / queries.shape[1]


def _read(branch: Branch, row: int, heads: Tensor) -> tuple[Tensor, Tensor] | None:
    """Keys [H, D, Sk] and log-bias [H] of a branch as a batch row reads it; None if it does not."""
    place = (branch.rows.targets == row).nonzero().flatten()
    if not len(place):
        return None
    key = widened(branch.key[int(place[0])][:, heads]).permute(1, 2, 0)
    if branch.log_bias is None:
        return key, key.new_zeros(len(heads))
    return key, branch.log_bias.to(key).reshape(-1).expand(branch.key.shape[2])[heads]


def _added(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _distances(layout: TokenLayout, start: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For queries start .. start + count and every image token: distance in grid widths, and whether it is in 3 x 3."""
    rows, columns = layout.grid
    places = torch.arange(rows * columns, device=like.device)
    mine = places[start : start + count, None]
    down, across = places // columns - mine // columns, places % columns - mine % columns
    distance = torch.hypot(down.to(like.dtype), across.to(like.dtype)) / columns
    return distance, ((down.abs() <= 1) & (across.abs() <= 1)).to(like.dtype)
