"""ConsistEdit against the authors' own numbers (tests/data/consistedit_fusion.npz) and against dense float64 forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edits import BLOCKS, BOX, INSIDE, MODELS, attended, call_of, check, fused, ours, passes, region_of, source
from references.editing import by_heads, consistedit
from test_references import bshd, gap, load
from torch import Tensor

from attnctrl import ConsistEdit, Region, Where
from attnctrl.layout import Layout
from attnctrl.processors.attaching import host_of

TOL = 3e-5  # of the parity data's README
GRID = (4, 6)
LAYOUTS = {
    "sd3": Layout.of((("image", 24), ("text", 7)), GRID),
    "flux": Layout.of((("text", 7), ("image", 24)), GRID),
}
models = pytest.mark.parametrize("model", MODELS)
guided = pytest.mark.parametrize("cfg", [False, True], ids=["", "CFG"])


# ---------------------------------------------------------------- the authors' data


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "nomask"])
@pytest.mark.parametrize(("tag", "halves"), [("sd3cfg", 2), ("sd3", 1), ("flux", 1)])
def test_parity(tag: str, halves: int, masked: bool, when: str) -> None:
    """28 steps, alpha 0.3: step 7 is the last that keeps all structure, step 8 the first that does not."""
    z, meta = load("consistedit_fusion")
    q, k, v = (bshd(z[f"{tag}_{x}"]) for x in "qkv")
    call = call_of(LAYOUTS[tag.removesuffix("cfg")], len(q), halves, step=7 if when == "before" else 8)
    control = ConsistEdit(alpha=meta["config"]["alpha"], region=region_of(z["edit_mask"]) if masked else None)
    rotary = (z["rope_cos"], z["rope_sin"]) if tag == "flux" else None
    name = f"{tag}_{'mask' if masked else 'nomask'}"
    out = attended(control, call, q, k, v, rotary)
    assert gap(out.flatten(2), z[f"{name}_out_{when}_alpha"]) < TOL
    other = call_of(call.layout, len(q), halves, step=8 if when == "before" else 7)
    assert gap(attended(control, other, q, k, v, rotary).flatten(2), z[f"{name}_out_{when}_alpha"]) > 0.1
    if masked and tag != "flux":
        for mine, letter in zip(fused(control, call, q, k, v), "qkv", strict=True):
            assert gap(mine, bshd(z[f"{name}_{letter}_fused_{when}_alpha"])) == 0


def test_parity_where_the_method_does_not_act() -> None:
    """Double-stream blocks of FLUX are plain attention: they are not among its usual blocks."""
    z, _ = load("consistedit_fusion")
    q, k, v = (bshd(z[f"flux_double_{x}"]) for x in "qkv")
    call = call_of(LAYOUTS["flux"], 2)
    off = attended(ConsistEdit(strength=0), call, q, k, v, (z["rope_cos"], z["rope_sin"]))
    assert gap(off.flatten(2), z["flux_double_out"]) < TOL
    pipe = MODELS["FLUX"].exact
    sites = host_of(pipe).edge.sites(pipe.transformer)
    assert {sites[place].stream for place in ConsistEdit().where.select(sites)} == {"single"}


# ---------------------------------------------------------------- dense float64

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "structure": ({"alpha": 0.5}, {"structure": True}),
    "after": ({"alpha": 0.25}, {"structure": False}),
    "identity": ({"alpha": 0.25, "identity": 0.7}, {"structure": False, "identity": 0.7}),
    "half": ({"alpha": 0.25, "strength": 0.5}, {"structure": False, "u": 0.5}),
    "half, structure, identity": (
        {"alpha": 1.0, "strength": 0.5, "identity": 1.0},
        {"structure": True, "identity": 1.0, "u": 0.5},
    ),
}


@models
@guided
@pytest.mark.parametrize("case", CASES)
def test_one_call_equals_the_naive_one(model, case, cfg):
    """Step 1 of 4: within the first floor(alpha 4) steps or not."""
    settings, equation = CASES[case]
    control = ConsistEdit(region=Region(box=BOX), **settings)
    check(MODELS[model], control, consistedit(INSIDE, **equation), cfg, blocks=BLOCKS[model])


@models
@guided
def test_without_a_region_only_the_first_steps_act(model, cfg):
    equation = consistedit(INSIDE, structure=True, masked=False)
    check(MODELS[model], ConsistEdit(alpha=0.5), equation, cfg, blocks=BLOCKS[model])
    calls, opened = passes(MODELS[model], cfg), source(MODELS[model])
    found = ours(MODELS[model], ConsistEdit(alpha=0.25), calls, opened)
    stock = ours(MODELS[model], ConsistEdit(strength=0), calls, opened)
    for a, b in zip(found, stock, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@models
def test_chosen_heads_blocks_and_a_soft_edge(model):
    soft = Region(box=BOX, edge=1.0)
    weights = torch.tensor(soft.weights(GRID)).double()
    assert ((weights > 0.01) & (weights < 0.99)).sum() > 8
    blocks = [2] if model == "FLUX" else [1]
    where = Where(blocks=",".join(map(str, blocks)), heads="H1 H3")
    equation = by_heads(consistedit(weights, structure=False), (1, 3))
    control = ConsistEdit(region=soft, alpha=0, where=where)
    check(MODELS[model], control, equation, False, blocks=blocks)


def test_words_are_found_in_the_source():
    """The region is where the source attends to the words most, above the threshold."""
    model = MODELS["FLUX"]
    opened = source(model)
    owl = opened.map("owl")
    inside = ((owl - owl.min()) > 0.6 * (owl.max() - owl.min())).double()
    assert 2 < inside.sum() < 22
    control = ConsistEdit(region=Region(words="owl", threshold=0.6), alpha=0)
    check(model, control, consistedit(inside, structure=False), False, blocks=BLOCKS["FLUX"])


@models
@guided
def test_off_is_bit_equal_and_processors_are_restored(model, cfg):
    pipe = MODELS[model].exact
    before = list(pipe.transformer.attn_processors.values())
    calls, opened = passes(MODELS[model], cfg), source(MODELS[model])
    pipe._guidance_scale = 3.0 if cfg else 1.0
    off = ours(MODELS[model], ConsistEdit(strength=0, region=Region(box=BOX)), calls, opened)
    assert all(a is b for a, b in zip(before, pipe.transformer.attn_processors.values(), strict=True))
    with torch.no_grad():
        if MODELS[model].sd3 and cfg:
            batch = {name: torch.cat([calls[1][name], calls[0][name]]) for name in calls[0]}
            stock: list[Tensor] = list(pipe.transformer(**batch, return_dict=False)[0].chunk(2))[::-1]
        else:
            stock = [pipe.transformer(**call, return_dict=False)[0] for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(off, stock, strict=True))
    ours(MODELS[model], ConsistEdit(region=Region(box=BOX)), calls, opened)
    assert all(a is b for a, b in zip(before, pipe.transformer.attn_processors.values(), strict=True))
    assert not pipe.transformer._forward_hooks | pipe.transformer._forward_pre_hooks
