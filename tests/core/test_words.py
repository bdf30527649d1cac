"""Words and their text columns: by offsets, by greedy decoding, on hand-built and embedded tokenizers."""

from __future__ import annotations

import pytest
from tiny import tiny_flux, tiny_sd3

from attnctrl import ControlError, load
from attnctrl.processors.attaching import host_of
from attnctrl.words import columns_of, piece_spans, words_of

PIECES = {  # the tiny tokenizers know letters only: CLIP <s> a | f o x </s>, T5 ▁ a ▁ f o x </s>
    "FLUX": (tiny_flux, {"a": (0, 1), "fox": (2, 3, 4, 5)}),
    "SD3": (tiny_sd3, {"a": (1, 32, 33), "fox": (2, 3, 4, 34, 35, 36, 37)}),
}


@pytest.mark.parametrize(("build", "expected"), PIECES.values(), ids=PIECES.keys())
def test_all_pieces_of_a_word_at_its_place_in_the_joint_text(build, expected):
    assert {word.text: word.columns for word in words_of(host_of(build()), "a fox", max_sequence_length=12)} == expected


def test_embedded_tokenizers_split_and_join():
    pipe = load("tiny-sd3", device="cpu")
    t5 = pipe.tokenizer_3.convert_ids_to_tokens(pipe.tokenizer_3("a hedgehog, comic")["input_ids"])
    clip = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer("a hedgehog, comic")["input_ids"])
    (word,) = columns_of(host_of(pipe), "a hedgehog, comic", ["hedgehog"])
    ours = [clip[c] if c < 24 else t5[c - 24] for c in word.columns]
    halves = "".join(ours[: sum(c < 24 for c in word.columns)]), "".join(ours[sum(c < 24 for c in word.columns) :])
    assert halves == ("hedgehog</w>", "▁hedgehog")
    assert [len(w.columns) for w in columns_of(host_of(pipe), "a hedgehog, comic", ["comic"])] == [2]


def test_phrases_repeats_case_and_hyphens():
    pipe = tiny_flux()
    prompt = "Red fox, fox-red red"  # ▁Red ...: capitals are unknown to the letters, but still tokens
    words = {word.text: word.columns for word in words_of(host_of(pipe), prompt, max_sequence_length=40)}
    assert list(words) == ["Red", "fox", "fox-red"]
    one, phrase = columns_of(host_of(pipe), prompt, ["RED", "red FOX"], max_sequence_length=40)
    assert one.columns == words["Red"]
    assert set(phrase.columns) < {*words["Red"], *words["fox"]}
    assert set(words["fox"]) < set(phrase.columns)
    assert max(one.columns) > max(phrase.columns), "the last red is not in the phrase"


def test_a_second_prompt_is_what_its_encoder_reads():
    flux, sd3 = tiny_flux(), tiny_sd3()
    assert [w.text for w in words_of(host_of(flux), "a fox", prompt_2="an owl", max_sequence_length=12)] == [
        "an",
        "owl",
    ]
    found = {w.text: w.columns for w in words_of(host_of(sd3), "a fox", prompt_3="an owl", max_sequence_length=12)}
    assert max(found["fox"]) < 32 <= min(found["owl"])
    assert columns_of(host_of(sd3), "a fox", ["fox"], prompt_2="fox", max_sequence_length=12)[0].columns[:3] == (
        1,
        2,
        3,
    )


class Slow:
    """A tokenizer without offsets: what `piece_spans` has to read back."""

    is_fast, all_special_ids = False, (0, 99)

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        return {"input_ids": [0, *range(1, len(self.pieces) + 1), 99][:max_length]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i - 1] if i not in self.all_special_ids else "<s>" for i in ids]


def test_greedy_decoding_equals_offsets():
    pieces = ["▁", "a", "▁hedge", "hog", ",", "▁a</w>"]
    spans = [(0, 0), (0, 1), (0, 1), (2, 7), (7, 10), (10, 11), (12, 13), (0, 0)]
    assert piece_spans(Slow(pieces), "a Hedgehog, a", 20) == spans
    assert piece_spans(Slow(pieces), "a Hedgehog, a", 4) == spans[:4]
    assert piece_spans(Slow(["Ã©", "Ġowl"]), "é owl", 9)[1:3] == [(0, 0), (2, 5)], "what cannot be read has no place"
    assert piece_spans(Slow(["x"]), "no such letter for a long while, x", 9)[1] == (0, 0), "no leap ahead"
    pipe = tiny_flux()
    fast = piece_spans(pipe.tokenizer_2, "a fox, owl", 12)
    tokens = pipe.tokenizer_2.convert_ids_to_tokens(pipe.tokenizer_2("a fox, owl")["input_ids"])[:-1]
    ours = piece_spans(Slow(tokens), "a fox, owl", 20)[1:-1]
    assert ours == fast[:-1]


def test_words_that_are_not_there():
    pipe = tiny_sd3()
    with pytest.raises(ControlError, match=r"^there is no word 'owl' in the prompt; its words are a, red, fox$"):
        columns_of(host_of(pipe), "a red fox", ["fox", "owl"], max_sequence_length=12)
    with pytest.raises(ControlError, match="no word ' ' in"):
        columns_of(host_of(pipe), "a red fox", [" "], max_sequence_length=12)
    long = "abcdefghijklmnopqrstuvwxyzabcdefghijk fox"
    with pytest.raises(ControlError, match=r"^the word 'fox' is beyond the 44 tokens that the model reads"):
        columns_of(host_of(pipe), long, ["fox"], max_sequence_length=12)
    assert min(columns_of(host_of(pipe), long, ["fox"], max_sequence_length=60)[0].columns) > 32, (
        "T5 alone still reads it"
    )
    assert words_of(host_of(pipe), long, max_sequence_length=12)[1].columns == ()


def test_without_t5_only_clip_reads():
    pipe = tiny_sd3()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    assert words_of(host_of(pipe), "a fox")[1].columns == (2, 3, 4)
