"""Odd and wrong inputs of the Python entry points: one sentence, the model as it was; what is plain is served."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from python_inputs import GREY, NOISE, PICTURES, PLAIN, REFUSED, TWO, draw
from runs import tiny_pipe

from attnctrl import AlignedStyle, NoEffectWarning, Recipe, Reference, Where, attached, observe
from attnctrl.descriptions import explain
from attnctrl.pictures import read_picture


@pytest.fixture(scope="module")
def drawn():
    """A pipeline, the very processors that it has, and what AlignedStyle() draws."""
    pipe = tiny_pipe()
    return pipe, dict(pipe.transformer.attn_processors), draw(pipe, AlignedStyle())


def test_there_are_many():
    assert len(REFUSED) + len(PICTURES) + len(PLAIN) >= 100


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_input_is_one_sentence(name, drawn):
    pipe, processors, _ = drawn
    run, says = REFUSED[name]
    with pytest.raises(ValueError) as fault:  # noqa: PT011 - of our own two kinds, see below
        run(pipe)
    said = explain(fault.value) if isinstance(fault.value, ValidationError) else str(fault.value)
    assert type(fault.value).__module__.split(".")[0] in ("attnctrl", "pydantic_core")
    assert says in said
    assert len(said.splitlines()) == 1
    now = pipe.transformer.attn_processors
    assert all(now[name] is processor for name, processor in processors.items())


@pytest.mark.parametrize("control", PLAIN, ids=str)
def test_what_is_plain_is_served(control, drawn):
    assert torch.equal(draw(drawn[0], control), drawn[2])


def test_one_prompt_and_one_control_are_several_in_a_recipe():
    one = Recipe(prompts="a fox", control=AlignedStyle)
    assert (
        one
        == Recipe(prompts=("a fox",), control=(AlignedStyle(),))
        == Recipe(prompts=["a fox"], control=AlignedStyle())
    )
    for body in ('{"prompts": "a fox"}', '{"prompts": ["a fox"], "control": "aligned"}'):
        with pytest.raises(ValidationError):
            Recipe.model_validate_json(body)


def test_a_text_for_where_names_blocks():
    assert AlignedStyle(where="0-1").where == AlignedStyle(where=Where(blocks="0-1")).where


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_comes_in_many_forms(name):
    assert np.abs(np.asarray(read_picture(PICTURES[name])).astype(int) - GREY[:, :, None]).max() <= 1
    one = AlignedStyle(reference=PICTURES[name]).reference
    assert isinstance(one, Reference)
    assert one.picture == Reference(picture=PICTURES[name]).picture


def test_an_array_leads_as_its_picture_does(drawn):
    found = [draw(drawn[0], AlignedStyle(reference=one)) for one in (NOISE, PICTURES["torch, floats"])]
    assert torch.equal(*found)


def test_controls_may_be_listed_and_the_same_block_entered_again(drawn):
    pipe, processors, aligned = drawn
    nag = "nag:prompt=blurry"
    with attached(pipe, ["aligned", nag]):
        wanted = draw(pipe)
    block = attached(pipe, "aligned", nag)
    for _ in range(2):
        with block:
            assert torch.equal(draw(pipe), wanted)
        assert pipe.transformer.attn_processors == processors
    with attached(pipe, "aligned", None):
        assert torch.equal(draw(pipe), aligned)


def test_a_session_is_asked_within_its_block(drawn):
    with pytest.raises(AttributeError, match="before the block: with attached"):
        attached(drawn[0], "aligned").at(0, of=2, sigma=1.0)


def test_what_nobody_keeps_is_taken_off_and_said(drawn):
    pipe, processors, _ = drawn
    with pytest.warns(NoEffectWarning, match="nobody kept what attached"):
        attached(pipe, "aligned").__enter__()
    assert pipe.transformer.attn_processors == processors


def test_processors_that_are_set_within_the_block_are_noticed(drawn):
    pipe, processors, _ = drawn
    with pytest.warns(NoEffectWarning, match="attention processors were replaced while controls were attached") as said:  # noqa: SIM117
        with attached(pipe, "aligned"):
            pipe.transformer.set_attn_processor(dict(processors))
    assert [one.filename for one in said] == [__file__]
    assert pipe.transformer.attn_processors == processors


def test_words_of_a_phrase_are_not_letters(drawn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = observe(drawn[0], TWO, "fox", num_inference_steps=1, height=32, width=32, where="0")
    assert found.words == ("fox",)
    assert found.numbers == (0,)
