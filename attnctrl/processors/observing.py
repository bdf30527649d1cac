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

from ..branch import Blend, Branch
from ..control import Call, Control
from ..effect import Attended, Effect
from ..errors import ControlError
from ..layout import Layout
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
uncompiled: Any = torch.compiler.disable(**_SAYING)
"""Decorates what writes down what it sees, so that it stays out of compiled blocks."""


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
        if self.row >= call.pictures:
            raise ControlError(
                f"observe: picture {self.row} is not in this batch of {call.pictures}; row counts from 0"
            )
        if call.layout.shown is not None:
            raise ControlError("observe maps the whole grid, and another control's view shows a part of it")
        length = call.layout.text[1] - call.layout.text[0]
        beyond = sorted({column for word in self.tokens for column in word if column >= length})
        if beyond:
            raise ControlError(f"observe: text column {beyond[0]} is beyond this call's {length} text tokens")

    def plan(self, call: Call) -> Effect:
        """The row to watch, in the first call of a step that carries the prompts."""
        if call.perturbed or call.step.call or not any(call.conditional):
            return Effect()
        recording = call.bank.get(self, "recording")
        if recording is None:
            recording = Recording(call.layout.grid, self.tokens)
            call.bank.keep(self, "recording", recording)
        start, _ = call.groups[call.conditional.index(True)]
        return ObservingEffect(self, start + len(call.guests) + self.row, call.step.index, recording)


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

    grid: tuple[int, ...]
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

    @uncompiled
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

    p_qk = exp(q k / sqrt(D) - lse_q), lse_q over every branch that the row reads; a word's map is the sum of p over its
    columns. Keys of the row's own sequence count by what they are, others as shared. In chunks of 64 queries: the
    largest tensor is [H, 64, keys].
    """
    index = torch.tensor(heads, device=at.q.device)
    queries = widened(at.layout.image_of(at.q)[row][:, index]).transpose(0, 1) * at.q.shape[-1] ** -0.5
    read = [part for branch in at.branches if (part := _read(branch, at, row, index)) is not None]
    keys = _added(one.count(len(heads), queries.shape[1]) for one in read)
    text, condition = at.layout.text, _conditions(at.layout)
    chosen = queries.new_zeros(text[1] - text[0], len(words))
    for i, word in enumerate(words if text != (0, 0) else ()):
        chosen[list(word), i] = 1
    maps, sums = [], queries.new_zeros(len(STATISTICS), len(heads))
    for start in range(0, queries.shape[1], QUERY_CHUNK):
        part = queries[:, start : start + QUERY_CHUNK]
        logits = [part @ one.key + one.of(start, part.shape[1]) for one in read]
        lse = torch.stack([x.logsumexp(-1) for x in logits]).logsumexp(0)
        shares = [(x - lse[..., None]).exp() for x in logits]
        p, elsewhere = _own(at.layout.length, read, shares)
        on_text, on_image = p[..., slice(*text)], p[..., slice(*at.layout.image)]
        distance, near = _distances(at.layout, start, part.shape[1], p)
        mean_logit = _added((a * x.clamp(min=LOWEST)).sum(-1) for a, x in zip(shares, logits, strict=True))
        figures = (
            on_text.sum(-1),
            on_image.sum(-1),
            _added(x.sum(-1) for x in (p[..., slice(*condition)], *elsewhere)),
            (lse - mean_logit) / keys[:, start : start + QUERY_CHUNK].log(),
            (on_image * distance).sum(-1) / on_image.sum(-1).clamp(min=TINY),
            (on_image * near).sum(-1),
        )
        sums += torch.stack(figures).sum(-1)
        maps.append(on_text @ chosen)
    whole = None
    if text != (0, 0) and words:
        whole = torch.cat(maps, dim=1).permute(2, 0, 1).unflatten(-1, at.layout.grid)
    return whole, sums / queries.shape[1]


@dataclass(frozen=True)
class Read:
    """A branch as one row's image queries read it: keys [H, D, Sk]; what is added to the logits, [H or 1, N or 1, Sk
    or 1].

    `tokens`: where the keys stand in the row's own sequence; None for keys of elsewhere.
    """

    key: Tensor
    bias: Tensor
    tokens: Tensor | None

    def count(self, heads: int, queries: int) -> Tensor:
        """How many keys each head and query reads [H, N]."""
        keys = self.key.shape[-1]
        read = (self.bias > -torch.inf).sum(-1) * (keys if self.bias.shape[-1] == 1 else 1)
        return read.to(self.key).expand(heads, queries)

    def of(self, start: int, count: int) -> Tensor:
        """The bias of some queries."""
        return self.bias if self.bias.shape[1] == 1 else self.bias[:, start : start + count]


def _read(branch: Branch | Blend, at: Attended, row: int, heads: Tensor) -> Read | None:
    """How a row's image queries read a branch; None if they do not."""
    if isinstance(branch, Blend):
        raise ControlError("attention that is mixed by a fixed amount cannot be observed as one distribution")
    place = row
    if branch.rows is not None:
        found = (branch.rows.index == row).nonzero().flatten()
        if not len(found):
            return None
        place = int(found[0])
    key = widened(branch.key[place][:, heads]).permute(1, 2, 0)
    start, stop = at.layout.image
    bias = key.new_zeros(1, 1, 1)
    for given in (branch.log_bias, branch.mask):
        if given is not None:
            if given.dtype == torch.bool:
                given = torch.zeros_like(given, dtype=key.dtype).masked_fill(~given, -torch.inf)
            given = given.to(key).reshape((*[1] * (4 - given.ndim), *given.shape))
            given = given[place if given.shape[0] > 1 else 0]
            given = given[heads] if given.shape[0] > 1 else given
            bias = bias + (given[:, start:stop] if given.shape[1] > 1 and branch.queries is None else given)
    if branch.queries is not None:
        mine = branch.queries if branch.queries.ndim == 1 else branch.queries[place]
        inside = (mine >= start) & (mine < stop)
        whole = key.new_full((bias.shape[0], stop - start, bias.shape[2]), -torch.inf)
        whole[:, mine[inside] - start] = bias if bias.shape[1] == 1 else bias[:, inside]
        bias = whole
    tokens = torch.arange(key.shape[-1], device=key.device) if branch.key is at.k else branch.tokens
    return Read(key, bias, tokens)


def _own(length: int, read: list[Read], shares: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The attention [H, n, length] to the row's own sequence, and to keys of elsewhere."""
    own = [(one.tokens, share) for one, share in zip(read, shares, strict=True) if one.tokens is not None]
    elsewhere = [share for one, share in zip(read, shares, strict=True) if one.tokens is None]
    p = shares[0].new_zeros(*shares[0].shape[:2], length)
    for tokens, share in own:
        p = p.index_add(2, tokens, share)
    return p, elsewhere


def _conditions(layout: Layout) -> tuple[int, int]:
    """The range of all condition images."""
    found = [one for one in layout.segments if one.kind == "condition"]
    return (found[0].start, found[-1].stop) if found else (0, 0)


def _added(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _distances(layout: Layout, start: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For queries start .. start + count and every image token: distance in grid widths, and whether it is in 3 x 3."""
    rows, columns = layout.grid
    places = torch.arange(rows * columns, device=like.device)
    mine = places[start : start + count, None]
    down, across = places // columns - mine // columns, places % columns - mine % columns
    distance = torch.hypot(down.to(like.dtype), across.to(like.dtype)) / columns
    return distance, ((down.abs() <= 1) & (across.abs() <= 1)).to(like.dtype)
