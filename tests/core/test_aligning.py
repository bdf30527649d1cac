"""Which columns of two prompts say the same."""

from __future__ import annotations

import pytest
from tiny import tiny_flux, tiny_sd3

from attnctrl.aligning import aligned_columns
from attnctrl.processors.attaching import host_of
from attnctrl.words import columns_of

CASES = {
    "replaced": ("a red fox, flat", "a blue fox, flat", ("a", "fox", "flat"), ("blue",)),
    "inserted": ("a fox, flat", "a big old fox, flat", ("a", "fox", "flat"), ("big", "old")),
    "left out": ("a big old fox, flat", "a fox, flat", ("a", "fox", "flat"), ()),
    "appended": ("a fox", "a fox on ice", ("a", "fox"), ("on", "ice")),
    "nothing": ("a fox", "a fox", ("a", "fox"), ()),
    "everything": ("a fox", "one bear", (), ("one", "bear")),
}


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
@pytest.mark.parametrize(("one", "other", "both", "new"), CASES.values(), ids=CASES)
def test_words_that_stand_in_both_are_paired(make, one, other, both, new):
    host = host_of(make())
    parts = [host.parts(prompt, max_sequence_length=40) for prompt in (one, other)]
    pairs = aligned_columns(*parts)
    for word in both:
        a, b = (columns_of(host, prompt, (word,), max_sequence_length=40)[0].columns for prompt in (one, other))
        assert set(zip(a, b, strict=True)) <= set(pairs)
    for word in new:
        columns = columns_of(host, other, (word,), max_sequence_length=40)[0].columns
        assert not set(columns) & {b for _, b in pairs}
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_marks_ends_and_padding_are_paired():
    host = host_of(tiny_sd3())
    one, other = (host.parts(text, max_sequence_length=20) for text in ("a fox, red", "one fox, red"))
    pairs = dict(aligned_columns(one, other))
    assert pairs[0] == 0  # CLIP's beginning
    # CLIP: <start> a f o x , r e d <end> pad ..; the other has two letters more
    assert [pairs.get(i) for i in range(1, 10)] == [None, 4, 5, 6, 7, 8, 9, 10, 11]
    assert [pairs.get(i) for i in (10, 11, 12, 31)] == [None, None, 12, 31]
    # T5 begins at 32
    assert pairs[32 + 19] == 32 + 19


def test_the_same_prompt_is_paired_with_itself():
    host = host_of(tiny_sd3())
    parts = host.parts("a fox, red", max_sequence_length=20)
    assert aligned_columns(parts, parts) == tuple((i, i) for i in range(52))
