"""Prompt-to-prompt on the joint map: the source's attention to the words that both prompts share (arXiv 2208.01626)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..aligning import aligned_columns
from ..control import Call
from ..effect import Attended, Effect
from ..registry import register
from ..where import Where
from .editing import EditControl

if TYPE_CHECKING:
    from torch import Tensor


@register
class PromptToPrompt(EditControl):
    """Prompt-to-prompt: image tokens look at the words that both prompts share where the source's looked at them.

    For an image token, A the text columns that both prompts have (words in the same order, special tokens, padding of
    the same column; `aligning.aligned_columns`), m = the source's probability on A:
        out = m softmax(q_s k_s,A) V_t,A + (1 - m) softmax(q_t k_t,R) V_t,R
    R are the target's other keys: its image, and the columns of words that were replaced or inserted, which so keep the
    target's own attention. Every row of the map sums to 1. In the first steps, in rows that carry prompts; text tokens
    read as always. With a region this holds inside, and outside tokens pass on what the source's attention gave.
    """

    kind: Literal["prompt-to-prompt"] = "prompt-to-prompt"
    where: Where = Where(steps="0%-80%")
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of it all; 0 is off, bit for bit")

    title: ClassVar[str] = "Prompt-to-prompt (edits by words)"
    source: ClassVar[str] = "arXiv 2208.01626"
    order: ClassVar[int] = 35
    claims: ClassVar[frozenset[str]] = frozenset({"what image tokens read"})

    @property
    def weaker(self) -> str:
        """Fewer steps."""
        return f"{self.kind} with steps=0%-40%, or strength={self.strength / 2:.2g}"

    def plan(self, call: Call) -> Effect:
        """The rows that carry prompts, by how their prompts differ from the source's."""
        if not any(call.conditional):
            return Effect()
        return call.once(("prompt to prompt", id(self)), lambda: self._effect(call))

    def _effect(self, call: Call) -> PromptEffect:
        assert call.source is not None
        text, length, pairs = call.layout.text[0], call.layout.length, self.pairs(call)
        groups: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
        for row, source in zip(pairs.targets.numbers, pairs.sources.tolist(), strict=True):
            half = next(i for i, (_, stop) in enumerate(call.groups) if row < stop)
            if call.conditional[half]:
                picture = row - call.groups[half][0] - len(call.guests)
                found = aligned_columns(call.source.texts, call.parts(picture))
                groups.setdefault(found, []).append((row, source))
        inside = self.inside(call)
        return PromptEffect(
            tuple(
                Shared(
                    call.index([row for row, _ in members]),
                    call.index([source for _, source in members]),
                    mine=_split(call, [text + mine for _, mine in found], length),
                    theirs=_split(call, [text + theirs for theirs, _ in found], length),
                )
                for found, members in groups.items()
                if found
            ),
            self.strength,
            None if inside is None else inside[:, None, None],
        )


def _split(call: Call, columns: list[int], length: int) -> tuple[Tensor, Tensor]:
    """Tokens as an index, and all others of the sequence."""
    return call.index(columns), call.index(sorted(set(range(length)) - set(columns)))


@dataclass(frozen=True)
class Shared:
    """Rows `targets` [T] of `sources` [T]; in each the columns that both prompts have, and the other tokens."""

    targets: Tensor
    sources: Tensor
    mine: tuple[Tensor, Tensor]
    theirs: tuple[Tensor, Tensor]

    def read(self, at: Attended) -> Tensor:
        """What image tokens get [T, S_img, H, D]."""
        import torch

        from ..attention import attend_with_lse

        q, q_source = (at.layout.image_of(at.q)[rows] for rows in (self.targets, self.sources))
        k, v = (x[self.targets] for x in (at.k, at.v))
        k_source, v_source = (x[self.sources] for x in (at.k, at.v))
        (mine, rest), (theirs, others) = self.mine, self.theirs
        out, _ = attend_with_lse(q, k[:, rest], v[:, rest])
        words, lse = attend_with_lse(q_source, k_source[:, theirs], v[:, mine])
        _, other = attend_with_lse(q_source, k_source[:, others], v_source[:, others])
        mass = torch.sigmoid(lse - other).transpose(1, 2).unsqueeze(-1)
        return torch.lerp(out.to(mass.dtype), words.to(mass.dtype), mass).to(out.dtype)


@dataclass(frozen=True)
class PromptEffect(Effect):
    """Image tokens' results replaced by `strength`; `inside` [S_img, 1, 1]: where, the source's own elsewhere."""

    groups: tuple[Shared, ...]
    strength: float
    inside: Tensor | None

    def output(self, at: Attended) -> Tensor:
        """The result with other image tokens in the targets' rows."""
        import torch

        out = at.out()
        if at.layout.text == (0, 0):
            return out
        share = self.strength if at.gate is None else self.strength * at.gate.reshape(-1, 1)
        image = at.layout.image_of(out)
        changed = image
        for group in self.groups:
            new = group.read(at)
            if self.inside is not None:
                new = torch.lerp(image[group.sources], new, self.inside.to(new.dtype))
            mixed = image[group.targets] + share * (new - image[group.targets])
            changed = changed.index_copy(0, group.targets, mixed.to(image.dtype))
        return at.layout.with_image(out, changed)
