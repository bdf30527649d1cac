"""Add-it and ColorCtrl against dense float64 forwards; gamma found from the attention mass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edits import BOX, INSIDE, MODELS, attended, call_of, check, ours, passes, source
from references.editing import Equation, addit, by_heads, colorctrl
from torch import Tensor

from attnctrl import AddIt, ColorCtrl, Region, Where
from attnctrl.layout import Layout, Step
from attnctrl.processors.addit import root

GRID = (4, 6)
BOXED = Region(box=BOX)
SOFT = Region(box=BOX, edge=1.0)
SHARES = torch.tensor(SOFT.weights(GRID)).double()
models = pytest.mark.parametrize("model", MODELS)
CASES: dict[str, tuple[Any, dict[str, Any], Equation]] = {
    "gamma 1.1": (AddIt, {"gamma": 1.1}, addit(1.1)),
    "gamma 1, strength 2": (AddIt, {"gamma": 1.0, "strength": 2.0}, addit(1.0, odds=2.0)),
    "gamma .8, region": (AddIt, {"gamma": 0.8, "region": SOFT, "strength": 0.5}, addit(0.8, odds=0.5, inside=SHARES)),
    "auto": (AddIt, {}, addit()),
    "auto, ratio 2, region": (AddIt, {"ratio": 2.0, "region": BOXED}, addit(ratio=2.0, inside=INSIDE)),
    "colorctrl": (ColorCtrl, {}, colorctrl()),
    "colorctrl, region": (ColorCtrl, {"region": SOFT}, colorctrl(SHARES)),
    "colorctrl, half": (ColorCtrl, {"region": BOXED, "strength": 0.5}, colorctrl(INSIDE, u=0.5)),
}


@models
@pytest.mark.parametrize("case", CASES)
def test_one_call_equals_the_naive_one(model, case):
    """In both halves of a guided batch; at step 1 of 4 Add-it acts in every block."""
    cls, settings, equation = CASES[case]
    blocks = range(1, 5) if model == "FLUX" else range(1, 3)
    control = cls(where=Where(blocks=f"{blocks[0]}-{blocks[-1]}"), **settings)
    check(MODELS[model], control, equation, True, blocks=blocks)


@models
@pytest.mark.parametrize("case", ["gamma 1.1", "auto", "colorctrl, region"])
def test_chosen_heads(model, case):
    cls, settings, equation = CASES[case]
    heads = (0, 2)
    equation = by_heads(addit(heads=heads) if case == "auto" else equation, heads)
    control = cls(where=Where(blocks="1", heads="H0 H2"), **settings)
    check(MODELS[model], control, equation, False, blocks=[1])


@models
@pytest.mark.parametrize("cls", [AddIt, ColorCtrl])
def test_off_is_bit_equal(model, cls):
    calls, opened = passes(MODELS[model], True), source(MODELS[model])
    stock = ours(MODELS[model], [], calls, opened)
    off = ours(MODELS[model], cls(strength=0, region=BOXED, where=Where(blocks="all")), calls, opened)
    assert all(torch.equal(a, b) for a, b in zip(off, stock, strict=True))


def test_early_blocks_act_in_the_first_third_alone():
    """Of 30 steps: blocks that are not late in 0-10, late ones in 0-20, as published."""
    acting = [i for i in range(30) if AddIt().where.acts_at(Step(i, 30, torch.tensor(0.5)))]
    assert acting == list(range(21))
    layout = Layout.of((("text", 3), ("image", 24)), GRID)
    early = [i for i in acting if AddIt().plan(call_of(layout, 2, step=i, steps=30)).early]
    assert early == list(range(11))
    model = MODELS["FLUX"]
    control = AddIt(where=Where(blocks="0-3", steps="all"), early=0.5)
    check(model, control, addit(), False, blocks=range(4), step=1)
    check(model, control, addit(), False, blocks=range(2, 4), step=2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gamma_of_a_large_picture_is_asked_of_a_part_of_it():
    """17 x 9 tokens: every third is asked; there the attention is shared out as asked for."""
    layout = Layout.of((("text", 5), ("image", 153)), (17, 9))
    q, k, v = (drawn(2, 158, 2, 8, seed=i) for i in range(3))
    call = call_of(layout, 2)
    control = AddIt(ratio=1.2)
    effect = control.plan(call)
    assert effect.asked.tolist() == list(range(0, 153, 3))
    found = attended(control, call, q, k, v)[1]
    keys, values = torch.cat([k[0, 5:], k[1]]), torch.cat([v[0, 5:], v[1]])

    def by(gamma: float) -> tuple[Tensor, float]:
        scaled = keys.clone()
        scaled[153:] *= gamma
        p = torch.softmax(torch.einsum("qhd,khd->hqk", q[1], scaled) / 8**0.5, -1)
        asked = p[:, 5::3]
        ratio = asked[..., 158:].sum(-1).mean() / asked[..., :153].sum(-1).mean()
        return torch.einsum("hqk,khd->qhd", p, values), float(ratio)

    low, high = 0.5, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if by(middle)[1] < 1.2 else (low, middle)
    assert abs(middle - 1) > 0.02
    torch.testing.assert_close(found, by(middle)[0], atol=1e-7, rtol=1e-7)
    assert (found - by(middle + 0.001)[0]).abs().max() > 1e-5


def test_a_root_that_does_not_exist_is_the_nearer_end():
    """And one that does is found in seven rounds, whatever the slope, for each row by itself."""
    low, high = torch.full((4,), 0.5).double(), torch.full((4,), 2.0).double()
    at = torch.tensor([0.7, 1.9, -1.0, 5.0]).double()
    found = root(lambda x: x**3 - at**3, low, high)
    torch.testing.assert_close(found, torch.tensor([0.7, 1.9, 0.5, 2.0]).double(), atol=1e-3, rtol=0)
    steep = root(lambda x: torch.exp(3 * x) - torch.exp(3 * at.clamp(0.6, 1.9)), low, high)
    assert steep.isfinite().all()
    flat = root(lambda x: 0 * x, low, high)
    assert flat.isfinite().all()
