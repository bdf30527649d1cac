"""Word weights: words of a picture's own prompt read more, less, or not at all; everywhere or in a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..branch import Branch, Branches
from ..control import Call, Run
from ..effect import Effect, Features
from ..errors import ControlError
from ..guests import Guest
from ..registry import register
from ..words import WORD
from .editing import EditControl

if TYPE_CHECKING:
    from torch import Tensor

    from ..branch import Rows

Weight = Annotated[float, Field(ge=0.0, le=1000.0)]


@register
class WordWeights(EditControl):
    """Word weights: some words of the prompt are emphasised, played down or erased in attention.

    Every logit on a word's columns gets + ln w, so that its probability is multiplied by w and all of a query's
    are normalised again; w = 0 closes the columns, 1 is off. Without a region every token reads the words so; with one
    the region's image tokens do, and one that lies in it by a share m multiplies by 1 + m (w - 1), as strength and the
    gate of heads do. Needs no opened picture, unless the region is words. Under guidance the rows that carry prompts.
    What the text encoders mixed into other words, and the pooled text, stay.
    """

    kind: Literal["wordweights"] = "wordweights"
    words: tuple[str, ...] = Field(description="words of the prompt, or phrases, by colon")
    weights: tuple[Weight, ...] = Field(
        (2.0,), description="one for each, or one for all: 2 doubles a word's probability, 0 erases it, 1 is off"
    )
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of it all; 0 is off, bit for bit")

    title: ClassVar[str] = "Word weights (emphasise, erase)"
    source: ClassVar[str] = "arXiv 2208.01626 (re-weighting), before the softmax"
    order: ClassVar[int] = 25

    @field_validator("words", "weights", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_weight_each(self) -> WordWeights:
        if not self.words or not all(_names(phrase) for phrase in self.words):
            raise ValueError("words: name at least one word of the prompt, and no empty one")
        if len(self.weights) not in (1, len(self.words)):
            raise ValueError(f"{len(self.words)} words and {len(self.weights)} weights: give one for each, or one")
        named = [name for phrase in self.words for name in set(_names(phrase))]
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f"the word {name!r} is given twice; give it one weight")
        return self

    @property
    def changes(self) -> tuple[tuple[str, float], ...]:
        """Each phrase with its weight, those of weight 1 left out."""
        weights = self.weights * len(self.words) if len(self.weights) == 1 else self.weights
        return tuple((phrase, w) for phrase, w in zip(self.words, weights, strict=True) if w != 1)

    @property
    def off(self) -> bool:
        """At strength 0, and where every weight is 1."""
        return self.strength == 0 or not self.changes

    @property
    def claimed(self) -> frozenset[str]:
        """Each word's weight."""
        return frozenset(f"the weight of {name!r}" for phrase, _ in self.changes for name in _names(phrase))

    @property
    def weaker(self) -> str:
        """Weights that are further from 1; what is erased already stays in other words and in the pooled text."""
        if self.off or not any(w for _, w in self.changes):
            return "a prompt without the words"
        far = ":".join(f"{w * 3 if w > 1 else 0:g}" for _, w in self.changes)
        return f"{self.kind} with words={':'.join(phrase for phrase, _ in self.changes)},weights={far}"

    def guests(self, run: Run) -> Sequence[Guest]:
        """None: the words are the pictures' own."""
        return []

    def plan(self, call: Call) -> Effect:
        """The columns' weights in the rows that carry prompts."""
        if not any(call.conditional):
            return Effect()
        return call.once(("word weights", id(self)), lambda: self._effect(call))

    def _effect(self, call: Call) -> WeightsEffect:
        import torch

        starts = [start for (start, _), said in zip(call.groups, call.conditional, strict=True) if said]
        factors = torch.ones(call.groups[-1][1], 1, 1, call.layout.length, device=call.device)
        readers: dict[tuple[float, tuple[int, ...]], list[int]] = {}
        for picture in range(call.pictures):
            rows = [start + len(call.guests) + picture for start in starts]
            for phrase, weight in self.changes:
                columns = tuple(call.layout.text[0] + column for column in call.words(phrase, picture))
                factors[call.index(rows)[:, None], 0, 0, call.index(columns)] = weight
                readers.setdefault((weight, columns), []).extend(rows)
        inside = self.inside(call)
        if inside is None:
            return WeightsEffect(self.kind, self.strength * (factors - 1), ())
        start, stop = call.layout.image
        share = torch.zeros(call.layout.length, 1, device=call.device)
        share[start:stop, 0] = self.strength * inside
        apart = tuple(
            Apart(call.rows(rows), call.index(columns), share * (weight - 1))
            for (weight, columns), rows in readers.items()
        )
        return WeightsEffect(self.kind, -(factors != 1).to(factors), apart)


@dataclass(frozen=True)
class Apart:
    """Columns [n] of some rows, read beside the rest with 1 + `change` [S, 1] times their odds, by query."""

    rows: Rows
    columns: Tensor
    change: Tensor

    def branch(self, at: Features, own: Branch) -> Branch:
        """Their keys and values as a branch."""
        key, value = (x[self.rows.index][:, self.columns] for x in (at.k, at.v))
        rotary = None if own.rotary is None else (own.rotary[0][self.columns], own.rotary[1][self.columns])
        return Branch(key, value, self.rows, None, rotary, log_bias=_bias(self.change, at), tokens=self.columns)


@dataclass(frozen=True)
class WeightsEffect(Effect):
    """Keys of the row's own attention have 1 + `change` [B, 1, 1, S] times their odds; some columns are read apart."""

    kind: str
    change: Tensor
    apart: tuple[Apart, ...]

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """The row's own attention with biased columns; where no text is read nothing changes."""
        if at.layout.text == (0, 0):
            return branches
        first, *others = branches
        if not isinstance(first, Branch) or not first.complete or not first.joins:
            raise ControlError(
                f"{self.kind} weighs words in a row's own attention, which another control has replaced; "
                "give them other blocks or steps"
            )
        bias = (1 + self.change).log() if self.apart else _bias(self.change, at)
        bias = bias if first.log_bias is None else first.log_bias + bias
        return (replace(first, log_bias=bias), *others, *(one.branch(at, own) for one in self.apart))


def _bias(change: Tensor, at: Features) -> Tensor:
    """ln(1 + change), in each head as far as the gate lets it."""
    return (1 + (change if at.gate is None else at.gate[..., None, None] * change)).log()


def _names(phrase: str) -> list[str]:
    return [match[0].lower() for match in WORD.finditer(phrase)]
