"""Editing methods beside other controls, captured words, and compiled blocks; nothing of queries x keys is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from edits import BOX, INSIDE, call_of, unturned
from references.editing import Row, attend
from test_attention import Shapes
from tiny import tiny_flux, tiny_sd3
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from attnctrl import (
    AddIt,
    ColorCtrl,
    ConsistEdit,
    ControlledFluxPipeline,
    ControlledStableDiffusion3Pipeline,
    DiTCtrl,
    MasaCtrl,
    Region,
    StableFlow,
    Where,
    attached,
    edit,
    open_source,
)
from attnctrl.board import CallState
from attnctrl.branch import Branch, Branches, Rows
from attnctrl.effect import Effect, Features
from attnctrl.layout import Layout, Site
from attnctrl.phases import controlled_attention
from attnctrl.processors.capture import Captured, CapturingEffect

GRID, TEXT = (4, 6), 5
LAYOUT = Layout.of((("text", TEXT), ("image", 24)), GRID)
IMAGE = slice(TEXT, TEXT + 24)
BOXED = Region(box=BOX)
EVERY = Where(blocks="all", steps="all")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, K, V = (drawn(3, TEXT + 24, 2, 8, seed=i) for i in range(3))
MORE_K, MORE_V = (drawn(1, 4, 2, 8, seed=i) for i in (7, 8))


@dataclass(frozen=True)
class More(Effect):
    """Four keys of elsewhere that row 2 reads."""

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        return (*branches, Branch(MORE_K, MORE_V, Rows.chosen((2,), 3)))


def walked(*effects: Effect) -> Tensor:
    """One attention of row 0, the source, and two edits under some effects in their order."""
    state = CallState(LAYOUT, {"joint": LAYOUT}, effects)
    return controlled_attention(
        Q, K, V, state=state, gates=tuple((i, None) for i in range(len(effects))),
        site=Site(0, "joint", 0, 2, None), rotary=None, rotate=unturned, backend=None,  # type: ignore[arg-type]
    )  # fmt: skip


ROWS = [Row(*one) for one in zip(Q, K, V, strict=True)]


def masked(keys: list[Tensor], values: list[Tensor], allowed: Tensor) -> Tensor:
    """Row 2's dense attention to these keys; allowed [S, keys]."""
    bias = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    return attend(Q[2], torch.cat(keys), torch.cat(values), bias)


def by_region(extra: int = 4) -> Tensor:
    """Who may read which of the source's tokens: the region's image tokens each other, the others each other."""
    allowed = torch.ones(TEXT + 24, TEXT + 24 + extra, dtype=torch.bool)
    allowed[IMAGE, IMAGE] = INSIDE[:, None] == INSIDE[None]
    return allowed


def test_shared_keys_are_read_beside_what_edits_read():
    """The keys of another control join the softmax: with the source's, by region, and with a loud edit's own."""
    call, everything = call_of(LAYOUT, 3), torch.ones(TEXT + 24, TEXT + 28, dtype=torch.bool)
    replaced = masked([K[0], MORE_K[0]], [V[0], MORE_V[0]], by_region())
    own = masked([K[2], MORE_K[0]], [V[2], MORE_V[0]], everything)
    for strength in (1.0, 0.25):
        found = walked(More(), DiTCtrl(region=BOXED, strength=strength).plan(call))
        expected = strength * replaced + (1 - strength) * own
        torch.testing.assert_close(found[2], expected, atol=1e-7, rtol=1e-7)
        assert (found[1] - walked(DiTCtrl(region=BOXED, strength=strength).plan(call))[1]).abs().max() < 1e-12
        assert torch.equal(found[0], walked()[0]) or (found[0] - walked()[0]).abs().max() < 1e-12
    wide = torch.ones(TEXT + 24, 24 + TEXT + 28, dtype=torch.bool)
    loud = masked([K[0, IMAGE], 1.1 * K[2], MORE_K[0]], [V[0, IMAGE], V[2], MORE_V[0]], wide)
    torch.testing.assert_close(walked(More(), AddIt(gamma=1.1).plan(call))[2], loud, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(walked(AddIt(gamma=1.1).plan(call), More())[2], loud, atol=1e-7, rtol=1e-7)


def test_colorctrl_leaves_the_rest_of_a_row_to_text_and_shared_keys():
    call = call_of(LAYOUT, 3)
    found = walked(More(), ColorCtrl().plan(call))[2]
    logits = torch.einsum("qhd,khd->hqk", Q[0], K[0]) / 8**0.5
    seen = torch.softmax(logits, -1)[:, IMAGE, IMAGE]
    text = torch.einsum("qhd,khd->hqk", Q[2], torch.cat([K[2, :TEXT], MORE_K[0]])) / 8**0.5
    rest = torch.softmax(text, -1)[:, IMAGE] * (1 - seen.sum(-1, keepdim=True))
    expected = torch.einsum("hqk,khd->qhd", seen, V[2, IMAGE])
    expected += torch.einsum("hqk,khd->qhd", rest, torch.cat([V[2, :TEXT], MORE_V[0]]))
    torch.testing.assert_close(found[IMAGE], expected, atol=1e-7, rtol=1e-7)
    own = masked([K[2], MORE_K[0]], [V[2], MORE_V[0]], torch.ones(TEXT + 24, TEXT + 28, dtype=torch.bool))
    torch.testing.assert_close(found[:TEXT], own[:TEXT], atol=1e-7, rtol=1e-7)


SHARES: dict[str, Any] = {
    "masactrl, region": (MasaCtrl(region=BOXED), [K[0, IMAGE], K[2, :TEXT]], 24),
    "addit": (AddIt(gamma=1.2), [K[0, IMAGE], 1.2 * K[2]], 24),
    "stableflow": (StableFlow(), [K[0, IMAGE], K[2, :TEXT]], 24),
    "consistedit": (ConsistEdit(alpha=0), [K[2]], 0),
}


@pytest.mark.parametrize("case", SHARES)
def test_words_of_an_edit_are_captured_as_it_reads_them(case):
    """An edit is opened in its turn: its words' shares are those of what its tokens really read; DiTCtrl's text is the
    source's, of which no word is the edit's."""
    control, keys, first = SHARES[case]
    captured, words = Captured(GRID), torch.tensor([1, 3])
    walked(control.plan(call_of(LAYOUT, 3)), CapturingEffect(2, words, captured))
    joined = torch.cat(keys)
    logits = torch.einsum("qhd,khd->hqk", Q[2, IMAGE], joined) / 8**0.5
    if "region" in case:
        logits[:, :, :24] = logits[:, :, :24].masked_fill(INSIDE[:, None] != INSIDE[None], -torch.inf)
    expected = torch.softmax(logits, -1).mean(0)[:, first + words].T
    torch.testing.assert_close(captured.total.double(), expected, atol=1e-6, rtol=1e-6)


def test_no_word_of_an_edit_is_read_under_ditctrl():
    captured = Captured(GRID)
    walked(DiTCtrl().plan(call_of(LAYOUT, 3)), CapturingEffect(2, torch.tensor([1, 3]), captured))
    assert captured.total.abs().max() == 0
    source = Captured(GRID)
    walked(DiTCtrl().plan(call_of(LAYOUT, 3)), CapturingEffect(0, torch.tensor([1, 3]), source))
    expected = torch.softmax(torch.einsum("qhd,khd->hqk", Q[0, IMAGE], K[0]) / 8**0.5, -1).mean(0)[:, [1, 3]].T
    torch.testing.assert_close(source.total.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_mask_of_the_caller_hides_the_same_keys():
    """Padding of the source's text, and of the edit's own: a mask of each row."""
    mask = torch.ones(3, 1, 1, TEXT + 24, dtype=torch.bool)
    mask[0, ..., 3:TEXT] = False
    mask[2, ..., 1:TEXT] = False
    call = call_of(LAYOUT, 3)

    def seen(control: Any) -> Tensor:
        state = CallState(LAYOUT, {"joint": LAYOUT}, (control.plan(call),))
        return controlled_attention(
            Q, K, V, state=state, gates=((0, None),), site=Site(0, "joint", 0, 2, None),  # type: ignore[arg-type]
            rotary=None, rotate=unturned, backend=None, mask=mask,
        )[2]  # fmt: skip

    allowed = by_region(0) & mask[0, 0]
    torch.testing.assert_close(seen(DiTCtrl(region=BOXED)), masked([K[0]], [V[0]], allowed), atol=1e-7, rtol=1e-7)
    allowed = by_region(0) & mask[2, 0]
    mixed = [torch.cat([x[2, :TEXT], x[0, IMAGE]]) for x in (K, V)]
    torch.testing.assert_close(
        seen(MasaCtrl(region=BOXED)), masked([mixed[0]], [mixed[1]], allowed), atol=1e-7, rtol=1e-7
    )


# ---------------------------------------------------------------- sizes and graphs

METHODS: dict[str, Any] = {
    "consistedit": ConsistEdit(alpha=0.5, region=BOXED, where=EVERY),
    "ditctrl, soft": DiTCtrl(region=Region(box=BOX, edge=2.0), where=EVERY),
    "masactrl, half": MasaCtrl(region=BOXED, strength=0.5, where=EVERY),
    "stableflow": StableFlow(where=EVERY),
    "addit": AddIt(where=EVERY, region=BOXED),
    "colorctrl": ColorCtrl(where=EVERY, region=BOXED),
    "colorctrl, half": ColorCtrl(where=EVERY, strength=0.5),
}
CALL: dict[str, Any] = {"num_inference_steps": 1, "height": 120, "width": 160, "max_sequence_length": 12}


@pytest.mark.parametrize("build", ["FLUX", "SD3.5"])
def test_nothing_of_attention_size_is_made(build):
    """300 image tokens: no tensor has them, or all tokens, along its last two axes."""
    flux = build == "FLUX"
    pipe = (
        tiny_flux(cls=ControlledFluxPipeline)
        if flux
        else tiny_sd3(qk_norm="rms_norm", dual=(0, 1), cls=ControlledStableDiffusion3Pipeline)
    )
    opened = open_source(pipe, "a fox", **CALL)
    text, image = 12 if flux else 44, 300
    inside = sum(1 for x in BOXED.weights(opened.source.grid) if x > 0.5)
    sizes = {image, text + image, 2 * image + text, inside, image - inside, inside + text, image - inside + text}
    for name, control in METHODS.items():
        with Shapes() as shapes:
            edit(pipe, opened, "a red owl", control, compare=False)
        assert not [s for s in shapes.seen if len(s) >= 2 and s[-1] in sizes and s[-2] in sizes], name
        assert any(text + image in s for s in shapes.seen), "the watch saw nothing"


@pytest.mark.parametrize("name", ["consistedit", "ditctrl, soft", "addit", "colorctrl"])
def test_compiled_blocks_make_no_graph_per_step(name, latents_of):
    """fullgraph raises on any break; after six steps no step adds a graph."""
    call = {"height": 32, "width": 48, "num_inference_steps": 6, "max_sequence_length": 12}
    plain = tiny_flux(cls=ControlledFluxPipeline)
    opened = open_source(plain, "a fox", **call)
    run = {"n": 1, "steps": 6, "height": 32, "width": 48}
    with attached(plain, METHODS[name], source=opened.source):
        expected = latents_of(plain, **run)
    torch._dynamo.reset()
    pipe, counter = tiny_flux(cls=ControlledFluxPipeline), CompileCounter()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    with attached(pipe, METHODS[name], source=opened.source):
        torch.testing.assert_close(latents_of(pipe, **run), expected, atol=1e-4, rtol=1e-4)
        graphs = counter.frame_count
        latents_of(pipe, **run)
    assert counter.frame_count == graphs
    assert graphs <= 4, "two of each kind of block: Add-it's early blocks stop, ConsistEdit's shares are tensors"
    torch._dynamo.reset()
