"""Word weights against dense float64 attention whose probabilities are multiplied and normalised again."""

from __future__ import annotations

import pytest
import torch
from editing import CLOSE, GRID, IMAGE, At, Case
from references.word_weights import weighted_attention

from attnctrl import ControlError, Region, Where, WordWeights, attached
from attnctrl.errors import ConflictError
from attnctrl.processors.attaching import host_of
from attnctrl.registry import parse_control

MODELS = ("FLUX", "SD3", "SD3.5")
LEFT = Region(box=(0, 0, 0.5, 1))
SOFT = Region(box=(0, 0, 0.5, 1), edge=1.0)


def site(case: Case, rows: list[dict[str, float]], region: Region | None = None, heads=None, strength: float = 1.0):
    """Each of the last rows' words with their weights; rows before them are plain."""
    inside = torch.ones(IMAGE) if region is None else torch.tensor(region.weights(GRID, case.source.find))

    def attention(at: At) -> torch.Tensor:
        weights = torch.ones(len(at.q), at.q.shape[2], at.q.shape[1], at.q.shape[1], dtype=at.q.dtype)
        if at.joint:
            share = torch.ones(at.q.shape[1]) if region is None else torch.zeros(at.q.shape[1])
            share[at.image] = inside
            gate = torch.ones(at.q.shape[2]) if heads is None else torch.tensor(heads)
            for row, words in zip(range(len(at.q) - len(rows), len(at.q)), rows, strict=True):
                for word, weight in words.items():
                    for column in case.columns(word, case.prompts[row - len(at.q)]):
                        change = strength * (weight - 1) * gate[:, None] * share[None]
                        weights[row, :, :, at.text.start + column] = 1 + change.double()
        return weighted_attention(at.rotate(at.q), at.rotate(at.k), at.v, weights)

    return attention


CASES = {
    "emphasised": ({"fox": 3.0}, {}),
    "erased": ({"fox": 0.0}, {}),
    "several": ({"blue": 0.25, "fox": 2.0, "flat": 0.0}, {}),
    "half strength": ({"fox": 0.0}, {"strength": 0.5}),
    "in a region": ({"fox": 3.0, "blue": 0.5}, {"region": LEFT}),
    "erased in a soft region": ({"fox": 0.0}, {"region": SOFT}),
    "two heads": ({"fox": 4.0}, {"heads": [0.0, 1.0, 0.0, 1.0]}),
    "two heads in a soft region": ({"fox": 4.0, "blue": 0.0}, {"heads": [0.0, 1.0, 0.0, 1.0], "region": SOFT}),
}


def control(words: dict[str, float], heads=None, **more) -> WordWeights:
    where = Where(heads="all" if heads is None else "H1 H3")
    return WordWeights(words=tuple(words), weights=tuple(words.values()), where=where, **more)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("words", "more"), CASES.values(), ids=CASES)
def test_equals_probabilities_multiplied_and_normalised(model, words, more):
    case = Case(model, guests=0)
    expected = case.naive(site(case, [words], **more))
    assert (expected - case.stock()).abs().max() > 1e-3, "the case shows nothing"
    torch.testing.assert_close(case.ours(control(words, **more)), expected, **CLOSE)


@pytest.mark.parametrize("region", [None, SOFT], ids=["", "region"])
@pytest.mark.parametrize("model", ["SD3", "SD3.5"])
def test_only_rows_with_prompts_each_with_its_own_columns(model, region):
    case = Case(model, prompts=("a blue fox, flat", "one fox and a green bear"), guided=True, guests=0)
    fox = {"fox": 0.0}
    expected = case.naive(site(case, [fox, fox], region))
    result = case.ours(control(fox, region=region))
    torch.testing.assert_close(result, expected, **CLOSE)
    torch.testing.assert_close(result[:2], case.stock()[:2], **CLOSE)


def test_negative_pass_of_its_own_is_stock(pipe, latents_of):
    said = {"prompt": ["a fox"], "n": 1, "cfg": 3.0}
    seen = []
    with attached(pipe, WordWeights(words="fox", weights=0), prompts=["a fox"]) as session:
        hook = pipe.transformer.register_forward_hook(lambda *_: seen.append(session._now.conditional))
        latents_of(pipe, **said)
        hook.remove()
        effects = WordWeights(words="fox").plan(session._now)
    assert seen == [(True,), (False,)] * 3
    assert type(effects).__name__ == "Effect"


@pytest.mark.parametrize("model", MODELS)
def test_a_region_of_words_is_found_in_the_source_without_its_row(model):
    case = Case(model, guests=0)
    region = Region(words="fox", threshold=0.5)
    expected = case.naive(site(case, [{"fox": 0.0}], region))
    result = case.ours(control({"fox": 0.0}, region=region))
    torch.testing.assert_close(result, expected, **CLOSE)


@pytest.mark.parametrize("model", MODELS)
def test_weight_one_and_zero_strength_are_bit_equal(model):
    case = Case(model, guests=0)
    for off in (WordWeights(words="fox", weights=1.0), WordWeights(words="fox", weights=0.0, strength=0)):
        assert off.off
        assert torch.equal(case.ours(off), case.stock())


def test_two_controls_of_different_words_are_one_of_both():
    case = Case("SD3", guests=0)
    both = case.ours([control({"fox": 0.0}, region=LEFT), control({"blue": 3.0})])
    again = case.ours([control({"blue": 3.0}), control({"fox": 0.0}, region=LEFT)])
    torch.testing.assert_close(both, again, **CLOSE)
    with pytest.raises(ConflictError, match="the weight of 'fox'"):
        case.ours([control({"fox": 0.0}), control({"blue fox": 3.0})])


def test_padding_is_never_weighed():
    case = Case("SD3", guests=0)
    with attached(case.pipe, control({"fox": 0.0}), prompts=case.prompts) as session:
        parts = host_of(case.pipe).parts(case.prompts[0])
        pad = {part.first + i for part in parts for i in range(len(part.text) + 2, part.length)}
        assert pad
        assert not pad & set(session._words("fox", 0))


def test_written_on_the_command_line():
    read = parse_control("wordweights:words=red fox:hat,weights=2:0,region.box=0:0:1:0.5")
    assert read.words == ("red fox", "hat")
    assert read.weights == (2.0, 0.0)
    assert parse_control("wordweights:words=fox").weights == (2.0,)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "wordweights": "needs words",
        "wordweights:words=": "at least one word",
        "wordweights:words=fox:hat,weights=1:2:3": "2 words and 3 weights",
        "wordweights:words=fox:fox": "given twice",
        "wordweights:words=fox,weights=-1": "greater than or equal to 0",
    }.items(),
)
def test_what_cannot_be_read_is_refused(text, said):
    with pytest.raises(ControlError, match=said):
        parse_control(text)


def test_a_word_that_is_not_there_and_words_without_a_source_are_refused(pipe, latents_of):
    with (
        attached(pipe, WordWeights(words="hat"), prompts=["a fox"]),
        pytest.raises(ControlError, match="no word 'hat'"),
    ):
        latents_of(pipe, n=1)
    within = WordWeights(words="fox", region="fox")
    with attached(pipe, within, prompts=["a fox"]), pytest.raises(ControlError, match="give a box or a mask"):
        latents_of(pipe, n=1)
