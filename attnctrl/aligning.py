"""Two prompts side by side: which text columns say in one what others say in the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

from .words import WORD, Part, piece_spans

Unit = tuple[Hashable, tuple[int, ...]]
Pair = tuple[int, int]


def aligned_columns(theirs: Sequence[Part], mine: Sequence[Part]) -> tuple[Pair, ...]:
    """(column of one prompt, column of the other) for every token that stands in both.

    Words, punctuation and special tokens that follow each other in both (the longest common runs), a word only where it
    has as many pieces in both; and padding in the same column. What was replaced, inserted or left out has no pair.
    """
    pairs: list[Pair] = []
    others = {part.first: part for part in mine}
    for first, part in {part.first: part for part in theirs}.items():
        other = others[first]
        (units, used), (with_, taken) = _units(part), _units(other)
        blocks = SequenceMatcher(
            None, [key for key, _ in units], [key for key, _ in with_], False
        ).get_matching_blocks()
        for block in blocks:
            for i in range(block.size):
                a, b = units[block.a + i][1], with_[block.b + i][1]
                pairs += zip(a, b, strict=True) if len(a) == len(b) else ()
        padding = range(max(used, taken), min(part.length, other.length))
        pairs += [(first + i, first + i) for i in padding]
    return tuple(sorted(pairs))


def _units(part: Part) -> tuple[list[Unit], int]:
    """Words and single other tokens of a part with their columns, and how many tokens are no padding."""
    ids = part.tokenizer(part.text, truncation=True, max_length=part.length)["input_ids"]
    spans = [match.span() for match in WORD.finditer(part.text)]
    units: list[Unit] = []
    last = None
    for i, (start, stop) in enumerate(piece_spans(part.tokenizer, part.text, part.length)):
        word = next((span for span in spans if start < span[1] and span[0] < stop), None)
        if word is not None and word == last:
            key, columns = units.pop()
            units.append((key, (*columns, part.first + i)))
        else:
            said = part.text[slice(*(word or (start, stop)))].strip().lower()
            units.append((said or int(ids[i]), (part.first + i,)))
        last = word
    return units, len(ids)
