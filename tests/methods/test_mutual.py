"""DiTCtrl, MasaCtrl and StableFlow against the authors' numbers (tests/data/ditctrl.npz) and dense float64 forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edits import BOX, INSIDE, MODELS, attended, call_of, check, ours, passes, region_of, source
from references.editing import Equation, by_heads, ditctrl, masactrl, stableflow
from test_references import bshd, gap, load
from torch import Tensor

from attnctrl import ConflictError, DiTCtrl, MasaCtrl, Region, StableFlow, Where
from attnctrl.layout import Layout, Step, groups_of
from attnctrl.processors.attaching import host_of

TOL = 2e-5  # of the parity data's README
GRID = (4, 6)
VIDEO = (6, 4)  # two frames of 3 x 4 tokens, one above the other
LAYOUT = Layout.of((("text", 7), ("image", 24)), VIDEO)
EVERYWHERE, BOXED = Region(box=(0, 0, 1, 1)), Region(box=BOX)
models = pytest.mark.parametrize("model", MODELS)


# ---------------------------------------------------------------- the authors' data


def layer(z: dict[str, Tensor], number: int) -> list[Tensor]:
    return [bshd(z[x][number]) for x in "qkv"]


def over(mask: Tensor) -> Region:
    return region_of(mask.reshape(VIDEO))


def test_ditctrl_parity_without_masks() -> None:
    """[u_s, u_t, c_s, c_t]: the targets read all of their source, the text too; outside of the steps nothing changes."""
    z, _ = load("ditctrl")
    q, k, v = layer(z, 0)
    call = call_of(LAYOUT, 4, 2)
    assert gap(bshd(attended(DiTCtrl(), call, q, k, v)), z["kvshare_out"]) < TOL
    assert gap(bshd(attended(DiTCtrl(strength=0), call, q, k, v)), z["kvshare_out_outside_steps"]) < TOL
    assert gap(bshd(attended(MasaCtrl(), call, q, k, v)), z["kvshare_out"]) > 0.1


@pytest.mark.parametrize("number", [1, 2])
def test_ditctrl_parity_with_masks(number: int) -> None:
    """Layers 25 and 26, each with the source's mask and the target's, of the conditional rows for both halves."""
    z, _ = load("ditctrl")
    q, k, v = layer(z, number)
    there, inside = z["mask_source"][number], z["mask_target"][number]
    assert 0 < inside.sum() < 24
    assert (there != inside).any()
    control = DiTCtrl(region=over(there), target_region=over(inside))
    found = bshd(attended(control, call_of(LAYOUT, 4, 2), q, k, v))
    assert gap(found, z["maskguided_out"][number]) < TOL
    one = DiTCtrl(region=over(there))
    assert gap(bshd(attended(one, call_of(LAYOUT, 4, 2), q, k, v)), z["maskguided_out"][number]) > 0.05
    plain = bshd(attended(DiTCtrl(strength=0), call_of(LAYOUT, 4, 2), *layer(z, 0)))
    assert gap(plain, z["maskguided_out"][0]) < TOL


def test_ditctrl_parity_of_a_given_and_of_an_empty_mask() -> None:
    """Foreground and background apart; with nothing in the mask only text is read."""
    z, _ = load("ditctrl")
    q, k, v = (x[:2] for x in layer(z, 0))
    call = call_of(LAYOUT, 2)
    for name, there in (("fg", z["given_source_mask"]), ("bg", 1 - z["given_source_mask"])):
        control = DiTCtrl(region=over(there), target_region=EVERYWHERE)
        assert gap(bshd(attended(control, call, q, k, v))[1:], z[f"given_{name}"]) < TOL
    one = torch.zeros(VIDEO)
    one[2, 1] = 1
    token = 7 + int(one.flatten().argmax())
    found = bshd(attended(DiTCtrl(region=EVERYWHERE, target_region=over(one)), call, q, k, v))[1:]
    others = torch.arange(31) != token
    assert gap(found[:, :, others], z["empty_mask_fg"][:, :, others]) < TOL
    assert gap(found[:, :, ~others], z["empty_mask_bg"][:, :, ~others]) < TOL
    assert gap(z["empty_mask_fg"][:, :, others], z["empty_mask_bg"][:, :, others]) > 0.1


# ---------------------------------------------------------------- dense float64

MOVED = Region(box=(0.5, 0.25, 1.0, 1.0))
THERE = torch.tensor([[float(row >= 1 and column >= 3) for column in range(6)] for row in range(4)]).double().flatten()
SOFT = Region(box=BOX, edge=1.0)
SHARES = torch.tensor(SOFT.weights(GRID)).double()
CASES: dict[str, tuple[Any, dict[str, Any], Equation]] = {
    "ditctrl": (DiTCtrl, {}, ditctrl()),
    "ditctrl, half": (DiTCtrl, {"strength": 0.5}, ditctrl(u=0.5)),
    "ditctrl, region": (DiTCtrl, {"region": BOXED}, ditctrl(INSIDE)),
    "ditctrl, moved, half": (
        DiTCtrl, {"region": BOXED, "target_region": MOVED, "strength": 0.5}, ditctrl(INSIDE, THERE, u=0.5)
    ),
    "ditctrl, soft": (DiTCtrl, {"region": SOFT}, ditctrl(SHARES, SHARES)),
    "ditctrl, everything": (DiTCtrl, {"region": EVERYWHERE, "target_region": MOVED}, ditctrl(torch.ones(24), THERE)),
    "masactrl": (MasaCtrl, {}, masactrl()),
    "masactrl, half": (MasaCtrl, {"strength": 0.5}, masactrl(u=0.5)),
    "masactrl, region": (MasaCtrl, {"region": BOXED}, masactrl(INSIDE)),
    "masactrl, moved, half": (
        MasaCtrl, {"region": BOXED, "target_region": MOVED, "strength": 0.5}, masactrl(INSIDE, THERE, u=0.5)
    ),
    "masactrl, soft": (MasaCtrl, {"region": SOFT, "target_region": SOFT}, masactrl(SHARES, SHARES)),
    "stableflow": (StableFlow, {}, stableflow()),
    "stableflow, half": (StableFlow, {"strength": 0.5}, stableflow(u=0.5)),
    "stableflow, region": (StableFlow, {"region": SOFT}, stableflow(SHARES)),
}  # fmt: skip


@models
@pytest.mark.parametrize("case", CASES)
def test_one_call_equals_the_naive_one(model, case):
    """In both halves of a guided batch."""
    cls, settings, equation = CASES[case]
    if case == "ditctrl, everything" and model == "SD3.5":
        pytest.skip("a second attention has no text to fall back on: see the next test")
    blocks = range(1, 5) if model == "FLUX" else range(1, 3)
    control = cls(where=Where(blocks=f"{blocks[0]}-{blocks[-1]}"), **settings)
    check(MODELS[model], control, equation, True, blocks=blocks)


def test_where_nothing_may_be_read_all_is():
    """SD3.5's second attention has no text: a background that the source lacks reads the whole source there."""
    layout = Layout.of((("image", 24),), GRID)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 24, 2, 8, generator=g, dtype=torch.float64) for _ in range(3))
    whole = attended(DiTCtrl(), call_of(layout, 2), q, k, v)
    found = attended(DiTCtrl(region=EVERYWHERE, target_region=MOVED), call_of(layout, 2), q, k, v)
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-12)


@models
@pytest.mark.parametrize("case", ["ditctrl", "ditctrl, soft", "masactrl", "masactrl, region", "stableflow"])
def test_chosen_heads(model, case):
    cls, settings, equation = CASES[case]
    control = cls(where=Where(blocks="1", heads="H0 H2"), **settings)
    check(MODELS[model], control, by_heads(equation, (0, 2)), False, blocks=[1])


@models
@pytest.mark.parametrize("cls", [DiTCtrl, MasaCtrl, StableFlow])
def test_off_is_bit_equal(model, cls):
    calls, opened = passes(MODELS[model], True), source(MODELS[model])
    stock = ours(MODELS[model], [], calls, opened)
    off = ours(MODELS[model], cls(strength=0, region=BOXED, where=Where(blocks="all")), calls, opened)
    assert all(torch.equal(a, b) for a, b in zip(off, stock, strict=True))


def test_blocks_and_steps_as_published():
    """FLUX.1's last 6 of 57 blocks, SD3's last 5 of 24; steps 2-17 of 28; StableFlow's depths of FLUX.1."""
    assert [n for n in range(57) if "final" in groups_of(n, 57, False, final=6 / 57)] == list(range(51, 57))
    assert [n for n in range(24) if "final" in groups_of(n, 24, False)] == list(range(19, 24))
    acting = [i for i in range(28) if DiTCtrl().where.acts_at(Step(i, 28, torch.tensor(0.5)))]
    assert acting == list(range(2, 18))
    assert [i for i in range(50) if MasaCtrl().where.acts_at(Step(i, 50, torch.tensor(0.5)))] == list(range(4, 50))
    for model, blocks in (("FLUX", [4]), ("SD3", [2])):
        pipe = MODELS[model].exact
        sites = host_of(pipe).edge.sites(pipe.transformer)
        assert [sites[place].index for place in DiTCtrl().where.select(sites)] == blocks


def test_what_is_refused():
    with pytest.raises(ValueError, match="target_region says where the region is in the edit, and there is no region"):
        DiTCtrl(target_region="fox")
    assert MasaCtrl(region="fox", target_region="owl").target_region == Region(words="owl")
    model = MODELS["FLUX"]
    with pytest.raises(ConflictError, match="ditctrl and masactrl both set what edits read"):
        ours(
            model,
            [DiTCtrl(where=Where(blocks="1")), MasaCtrl(where=Where(blocks="all"))],
            passes(model, False),
            source(model),
        )
