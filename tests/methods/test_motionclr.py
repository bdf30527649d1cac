"""MotionCLR's four edits against dense float64 attention on features fused by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from editing import CLOSE, GRID, LENGTH, SOURCE, At, Case
from references.attention import dense_attention
from references.motionclr import exchanged, exchanged_keys, moved, structured, varied

from attnctrl import ControlError, Exchange, KeepStructure, MoveScene, Region, Vary, Where
from attnctrl.aligning import aligned_columns
from attnctrl.processors.attaching import host_of

MODELS = ("FLUX", "SD3", "SD3.5")
SOFT = Region(box=(0, 0, 0.67, 1), edge=0.7)


def site(case: Case, equation, region: Region | None = None, share: float = 1.0, text: bool = False):
    """Rows [source, edits] of each half: every edit's image q, k, v by the equation, the half without prompts too."""
    inside = torch.ones(GRID) if region is None else torch.tensor(region.weights(GRID)).reshape(GRID)
    host = host_of(case.pipe)
    source = host.parts(SOURCE, max_sequence_length=LENGTH)

    def attention(at: At) -> torch.Tensor:
        q, k, v = at.q.clone(), at.k.clone(), at.v.clone()
        size = 1 + len(case.prompts)
        for row in (row for row in range(len(q)) if row % size):
            first, parts = row - row % size, []
            for x in (at.q, at.k, at.v):
                parts.append([x[r, at.image].unflatten(0, GRID) for r in (row, first)])
            new = equation(*zip(*parts, strict=True), inside)
            for x, (own, _), one in zip((q, k, v), parts, new, strict=True):
                x[row, at.image] = (own + share * (one - own)).flatten(0, 1)
            if text and at.joint:
                prompt = case.prompts[row % size - 1]
                pairs = aligned_columns(source, host.parts(prompt, max_sequence_length=LENGTH))
                if case.guided and row < size:
                    pairs = tuple((i, i) for i in range(at.text.stop - at.text.start))
                keys = exchanged_keys(at.k[row, at.text], at.k[first, at.text], list(pairs))
                k[row, at.text] = k[row, at.text] + share * (keys - k[row, at.text])
        return dense_attention(at.rotate(q), at.rotate(k), v)

    return attention


EVERY = Where(steps="all")
METHODS = {
    "exchange": (Exchange, {}, exchanged),
    "move": (MoveScene, {"by": (0.34, -0.25)}, partial(moved, down=-1, right=2)),
    "structure": (KeepStructure, {}, structured),
    "vary": (Vary, {"seed": 3}, partial(varied, tile=2, seed=3)),
    "vary by tokens": (Vary, {"tile": 1}, partial(varied, tile=1, seed=0)),
}
methods = pytest.mark.parametrize(("cls", "given", "equation"), METHODS.values(), ids=METHODS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("region", [None, SOFT], ids=["", "region"])
@methods
def test_equals_features_fused_by_hand(model, region, cls, given, equation):
    case = Case(model)
    expected = case.naive(site(case, equation, region, text=cls is Exchange))
    assert (expected - case.stock()).abs().max() > 1e-3, "the case shows nothing"
    torch.testing.assert_close(case.ours(cls(where=EVERY, region=region, **given)), expected, **CLOSE)


def test_exchange_under_guidance_for_two_edits_at_half_strength():
    case = Case("SD3.5", prompts=("a blue fox, flat", "one bear, flat"), guided=True)
    expected = case.naive(site(case, exchanged, share=0.5, text=True))
    torch.testing.assert_close(case.ours(Exchange(strength=0.5)), expected, **CLOSE)


@methods
def test_zero_strength_is_bit_equal(cls, given, equation):
    case = Case("FLUX", guests=0)
    assert torch.equal(case.ours(cls(where=EVERY, strength=0, **given)), case.stock())


def test_what_moves_nothing_is_refused():
    with pytest.raises(ControlError, match=r"by=0:0.05 is no token of the 4 x 6 grid"):
        Case("FLUX").ours(MoveScene(by=(0, 0.05)))
    with pytest.raises(ControlError, match="take smaller tiles"):
        Case("FLUX").ours(Vary(tile=4, where=EVERY))
