"""From a prompt to its words, and to the columns of the joint text sequence in which each of them stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import ControlError


class Reads(Protocol):
    """What knows how a prompt becomes tokens: a host."""

    def parts(self, prompt: str, **call: Any) -> tuple[Part, ...]:
        """The parts of the text sequence."""
        ...


WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
MARKS = re.compile("▁|</w>|Ġ")
SLACK = 8
"""How many characters a slow tokenizer may have left out between two pieces, spaces among them."""
TEXTS = ("prompt_2", "prompt_3", "max_sequence_length")
Span = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """A word of the prompt, as it is written there, and its text columns; none where it was cut off."""

    text: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A stretch of the text sequence: what was tokenized by what, its first column and its number of columns."""

    tokenizer: Any
    text: str
    first: int
    length: int

    def columns(self, spans: Sequence[Span]) -> set[int]:
        """The columns whose piece of the text overlaps one of `spans`."""
        pieces = enumerate(piece_spans(self.tokenizer, self.text, self.length))
        return {self.first + i for i, (a, b) in pieces if any(a < stop and start < b for start, stop in spans)}


@dataclass(frozen=True)
class Prompts:
    """What the rows of a run say: a prompt each, and the pipeline's arguments that matter to its tokens."""

    prompts: tuple[str, ...]
    call: dict[str, Any] = field(default_factory=dict)

    def of(self, number: int) -> dict[str, Any]:
        """The arguments that say how prompt `number` becomes tokens."""
        texts = {name: value for name in TEXTS if (value := self.call.get(name))}
        return {name: value[number] if isinstance(value, (list, tuple)) else value for name, value in texts.items()}

    def parts(self, host: Reads, number: int) -> tuple[Part, ...]:
        """How prompt `number` becomes tokens."""
        return host.parts(self.prompts[number], **self.of(number))

    def columns(self, host: Reads, text: str, number: int) -> tuple[int, ...]:
        """The text columns of words in prompt `number`; ControlError where they are not in it."""
        return columns_of(host, self.prompts[number], (text,), **self.of(number))[0].columns


def words_of(host: Reads, prompt: str, **call: Any) -> tuple[Word, ...]:
    """The words of a prompt in their order, each once, with all columns of all places where it stands.

    Columns count from 0 within the text that the transformer reads. FLUX: T5's (`tokenizer_2`). SD3: CLIP's, which both
    encoders share, and then T5's; a word has columns in both. `call`: the pipeline's arguments, of which `prompt_2`,
    `prompt_3` and `max_sequence_length` matter. Upper and lower case are the same.
    """
    parts = host.parts(prompt, **call)
    found: dict[str, str] = {}
    for part in parts:
        for match in WORD.finditer(part.text):
            found.setdefault(match[0].lower(), match[0])
    return tuple(Word(text, _columns(parts, (low,))) for low, text in found.items())


def columns_of(host: Reads, prompt: str, words: Sequence[str], **call: Any) -> tuple[Word, ...]:
    """The chosen words, or phrases of words that follow each other ("red fox"), with their columns as in `words_of`.

    Raises ControlError for a word that is not in the prompt, and for one that the text encoders cut off.
    """
    parts = host.parts(prompt, **call)
    result = []
    for word in words:
        lowered = tuple(match[0].lower() for match in WORD.finditer(word))
        if not lowered or not any(_spans(part.text, lowered) for part in parts):
            known = ", ".join(one.text for one in words_of(host, prompt, **call))
            raise ControlError(f"there is no word {word!r} in the prompt; its words are {known or 'none'}")
        columns = _columns(parts, lowered)
        if not columns:
            length = sum(part.length for part in {part.first: part for part in parts}.values())
            raise ControlError(f"the word {word!r} is beyond the {length} tokens that the model reads; put it earlier")
        result.append(Word(word, columns))
    return tuple(result)


def piece_spans(tokenizer: Any, text: str, length: int) -> list[Span]:
    """(start, stop) within `text` of every token that is not cut off; (0, 0) for special and unreadable ones.

    Fast tokenizers say it themselves. Otherwise each piece, stripped of its marks, is looked for where the last one
    ended; one that is not found has no place, and a mark alone is where the next piece is.
    """
    if getattr(tokenizer, "is_fast", False):
        coded = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)
        return [(int(a), int(b)) for a, b in coded["offset_mapping"]]
    ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
    special = set(tokenizer.all_special_ids)
    spans: list[Span] = []
    marks: list[bool] = []
    end = 0
    for number, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        piece = "" if number in special else MARKS.sub("", token).lower()
        start = text.lower().find(piece, end, end + SLACK + len(piece)) if piece else -1
        found = (start, start + len(piece)) if start >= 0 else (0, 0)
        end = max(end, found[1])
        spans.append(found)
        marks.append(number not in special and not piece)
    for i in reversed(range(len(spans) - 1)):
        spans[i] = spans[i + 1] if marks[i] else spans[i]
    return spans


def _columns(parts: Sequence[Part], lowered: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(sorted({c for part in parts for c in part.columns(_spans(part.text, lowered))}))


def _spans(text: str, lowered: tuple[str, ...]) -> list[Span]:
    """Where the words follow each other in the text: the span of every one of them."""
    found = [(match[0].lower(), match.span()) for match in WORD.finditer(text)]
    spans = []
    for i in range(len(found) - len(lowered) + 1):
        if tuple(word for word, _ in found[i : i + len(lowered)]) == lowered:
            spans += [span for _, span in found[i : i + len(lowered)]]
    return spans
