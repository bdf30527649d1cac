"""Guides, NAG and APG: what is said, and what is refused, in one clear sentence each."""

from __future__ import annotations

import warnings
from math import inf, nan

import pytest
import torch
from test_guidance import CONTROLS
from tiny import tiny_flux, tiny_sd3

from attnctrl import (
    APG,
    NAG,
    PAG,
    SEG,
    SLG,
    TPG,
    ConflictError,
    ControlError,
    NoEffectWarning,
    OverGuidanceWarning,
    SoftPAG,
    Where,
    attached,
)


@pytest.mark.parametrize(("strength", "said"), [(3.0, []), (1e3, [OverGuidanceWarning])])
def test_too_much_guidance_is_said_and_the_usual_is_not(strength, said, pipe, latents_of):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with attached(pipe, SoftPAG(where=Where(heads="L4H1"), strength=strength)):
            latents_of(pipe)
    assert [warning.category for warning in caught] == said
    assert all(warning.filename == __file__ for warning in caught)


def test_a_perturbation_that_changes_nothing_is_said(pipe, latents_of):
    """The output projection of block 4 reads nothing of its first head."""
    with torch.no_grad():
        pipe.transformer.single_transformer_blocks[2].proj_out.weight[:, :16] = 0
    stock = latents_of(pipe)
    with pytest.warns(NoEffectWarning, match="softpag has no effect: .* choose other heads"):  # noqa: SIM117
        with attached(pipe, SoftPAG(where=Where(heads="L4H0"))):
            torch.testing.assert_close(latents_of(pipe), stock)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.kind)
def test_a_window_that_never_comes_is_said(control, pipe, latents_of):
    stock = latents_of(pipe, n=2, cfg=2.0)
    never = control.model_copy(update={"where": control.where.model_copy(update={"steps": "7-9"})})
    with pytest.warns(NoEffectWarning, match=f"{control.kind} never acted"), attached(pipe, never, guidance_scale=2.0):
        result = latents_of(pipe, n=2, cfg=2.0)
    if isinstance(control, NAG):  # the batch is larger
        torch.testing.assert_close(result, stock, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(result, stock)


def test_apg_without_guidance_to_replace(latents_of):
    with (
        pytest.raises(ControlError, match=r"apg replaces .* it is off; give a guidance_scale over 1"),
        attached(pipe := tiny_sd3(), APG()),
    ):
        latents_of(pipe, guidance_scale=1.0)
    with (
        pytest.raises(ControlError, match="apg must know the guidance: give it guidance_scale"),
        attached(pipe := tiny_flux(), APG()),
    ):
        latents_of(pipe, cfg=2.0)
    with attached(sd3 := tiny_sd3(), APG()):
        guided = latents_of(sd3, guidance_scale=3.0)
    with attached(sd3, APG(guidance_scale=9.0), guidance_scale=9.0):
        assert torch.equal(latents_of(sd3, guidance_scale=3.0), guided), "the pipeline's own scale counts"
    stock = latents_of(pipe)
    with (
        pytest.warns(NoEffectWarning, match="no unconditional prediction came; give a negative_prompt and a true_cfg"),
        attached(pipe, APG(), guidance_scale=2.0),
    ):
        assert torch.equal(latents_of(pipe), stock)


# ---------------------------------------------------------------- what is refused

UNREADABLE = [
    (lambda: SoftPAG(u=1.5), r"u lies between 0 \(off\) and 1"),
    (lambda: PAG(u=(0.5, -0.1), where=Where(heads="L0H1, L0H2")), "u lies between 0"),
    (lambda: SoftPAG(u=(0.5,), where=Where(heads="L0H1, L0H2")), "u has 1 numbers for 2 listed heads; write heads as"),
    (lambda: SoftPAG(u=(0.5, 0.5)), "u has 2 numbers for 0 listed heads; write heads as L14H7, L14H17"),
    (lambda: SoftPAG(where=Where(heads="")), "heads: cannot read ''; write for example"),
    (lambda: SoftPAG(where={"heads": []}), r"expected text, a number or a list, got \[\]"),
    (lambda: SLG(where=Where(heads="L7H1")), "slg acts on whole blocks; heads cannot be chosen"),
    (lambda: TPG(where=Where(heads="H1")), "tpg acts on whole blocks; heads cannot be chosen"),
    (lambda: NAG(where=Where(heads="H1")), "nag measures tokens over all heads; heads cannot be chosen"),
    (lambda: SEG(sigma=0.0), "sigma\n.*greater than 0"),
    (lambda: SEG(sigma=-1.0), "sigma\n.*greater than 0"),
    (lambda: PAG(strength=-2.0), "strength\n.*greater than or equal to -1"),
    *[
        (make, "should be a finite number")
        for make in (lambda: SLG(strength=nan), lambda: APG(eta=nan), lambda: NAG(phi=inf))
    ],
]


@pytest.mark.parametrize(("make", "words"), UNREADABLE, ids=[words[:20] for _, words in UNREADABLE])
def test_what_cannot_be_read_is_refused(make, words):
    with pytest.raises(ValueError, match=words) as refused:
        make()
    assert str(refused.value).count("\n") < 5, "one sentence in pydantic's frame"


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (PAG(where=Where(blocks="5")), r"^blocks: 5 is out of range; this model has blocks 0-4$"),
        (SLG(), r"^blocks: 7-9 is out of range; this model has blocks 0-4$"),
        (SoftPAG(where=Where(heads="L7H0")), r"^heads: L7H0 names block 7; this model has blocks 0-4$"),
        (SoftPAG(where=Where(heads="L3H4")), r"^heads: L3H4; block 3 has heads 0-3$"),
        (SoftPAG(row_heads=("L3H4", "")), r"^row_heads: H4; block 3 has heads 0-3$"),
        (SoftPAG(row_heads=("L3H1", "L3H2")), r"^row_heads lists 2 sets of heads for 3 pictures$"),
        ([APG(), APG(eta=1.0)], r"^apg and apg both set classifier-free guidance in 5 blocks .*: give them different"),
    ],
    ids=["block", "slg", "head's block", "head", "row's head", "rows", "two APGs"],
)
def test_what_the_model_cannot_do_is_refused(control, words, pipe, latents_of):
    wanted = ConflictError if isinstance(control, list) else ControlError
    with pytest.raises(wanted, match=words), attached(pipe, control, guidance_scale=2.0):
        latents_of(pipe)
