"""Guides, NAG and APG: the shared prefix, off and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_siblings import call_of
from tiny import tiny_flux, tiny_sd3
from tiny_siblings import SIBLINGS
from torch import Tensor, nn

from attnctrl import APG, NAG, PAG, SEG, SLG, TPG, Control, SoftPAG, Where, attached
from attnctrl.guidance import Guidance
from attnctrl.guide import Combiner, Guide

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
MODELS = {"FLUX": tiny_flux, "SD3": tiny_sd3}
CONTROLS = (
    SoftPAG(where=Where(heads="L1H1, L2H0")),
    PAG(where=Where(blocks="1")),
    SEG(where=Where(blocks="1"), sigma=1.0),
    SLG(where=Where(blocks="1", steps="all")),
    TPG(where=Where(blocks="1")),
    NAG(prompt="an owl"),
    APG(),
)


def blocks_of(pipe: Any) -> list[nn.Module]:
    transformer = pipe.transformer
    return [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]


def parts_of(pipe: Any) -> list[Any]:
    """What a session may exchange."""
    return [*blocks_of(pipe), *pipe.transformer.attn_processors.values()]


def same(parts: list[Any], others: list[Any]) -> bool:
    return all(a is b for a, b in zip(parts, others, strict=True))


def guide_from(block: int, kind: type[Guide]) -> Guide:
    """A guide whose lowest block is `block`, with the one after it."""
    if kind is SoftPAG:
        return SoftPAG(where=Where(heads=f"L{block}H1, L{block + 1}H0"))
    return kind(where=Where(blocks=f"{block}-{block + 1}", steps="all"))


# ---------------------------------------------------------------- the shared prefix

NAMED = {sibling.name: sibling for sibling in SIBLINGS}
STARTS = [
    *[(name, "plain", kind, block) for name in ("FluxPipeline", "FluxControlNetPipeline") for block in (1, 2, 3) for kind in (SoftPAG, SLG)],
    *[("FluxPipeline", "guided", kind, block) for block, kind in ((1, TPG), (2, SEG), (3, SoftPAG), (3, SLG))],
    *[(name, "plain", kind, 1) for name in ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline", "SD3.5") for kind in (SoftPAG, SLG, TPG)],
    *[(name, "guided", SoftPAG, 1) for name in ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline", "SD3.5")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "mode", "kind", "block"), STARTS)
def test_the_shared_prefix_changes_nothing(name, mode, kind, block, monkeypatch):
    """Bit-equal to a pass from the first block, where the batch is the same; under SD3's CFG it is half as large."""
    sibling = NAMED.get(name, NAMED["StableDiffusion3Pipeline"])
    pipe = sibling.build() if name in NAMED else tiny_sd3(qk_norm="rms_norm", dual=(0, 1))
    calls = [0] * len(blocks_of(pipe))
    for i, own in enumerate(blocks_of(pipe)):
        own.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))

    def run() -> tuple[Tensor, list[int]]:
        calls[:] = [0] * len(calls)
        with attached(pipe, guide_from(block, kind)):
            return pipe(**call_of(sibling, pipe, mode)).images, list(calls)

    shared, few = run()
    monkeypatch.setattr(Guidance, "shares_prefix", False)
    whole, many = run()
    passes = few[0] // 2
    assert passes == (2 if mode == "guided" and not sibling.sd3 else 1)
    skipped = range(block, block + 2) if kind is SLG else ()
    assert few == [2 * (passes + (i >= block and i not in skipped)) for i in range(len(calls))]
    assert many == [2 * (passes + (i not in skipped)) for i in range(len(calls))]
    if mode == "guided" and sibling.sd3:
        torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    else:
        assert torch.equal(shared, whole)


# ---------------------------------------------------------------- off and after


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.kind)
def test_off_twice_broken_and_after(control, model, latents_of):
    pipe = MODELS[model]()
    scale = {"guidance_scale": 2.0 if isinstance(control, Combiner) else 1.0} if model == "SD3" else {}
    options = {"n": 2, "steps": 2, "cfg": 2.0 if isinstance(control, Combiner) and model == "FLUX" else 1.0, **scale}
    before, blocks = parts_of(pipe), blocks_of(pipe)

    def run(given: Control | None) -> list[Tensor]:
        with attached(pipe, given, guidance_scale=2.0):
            return [latents_of(pipe, **options) for _ in range(2)]

    stock = run(None)[0]
    offs = [{"strength": 0.0}] + ([{"u": 0.0}] if isinstance(control, PAG | SEG | SoftPAG) else [])
    for off in offs:
        with attached(pipe, control.model_copy(update=off), guidance_scale=2.0) as session:
            assert torch.equal(latents_of(pipe, **options), stock)
        assert session.acted == [0], "and costs nothing"
    first, again = run(control)
    assert torch.equal(first, again)
    assert (first - stock).abs().flatten(1).amax(1).min() > 1e-2, "every picture"

    seen = []

    def stop(*_: Any) -> None:
        seen.append((session._perturbing is not None, same(parts_of(pipe), before)))
        if len(seen) == 2:
            raise RuntimeError("stop")

    hook = blocks[-1].register_forward_hook(stop)
    with attached(pipe, control, guidance_scale=2.0) as session:
        with pytest.raises(RuntimeError, match="stop"):
            latents_of(pipe, **options)
        assert same(blocks_of(pipe), blocks), "at once, not on leaving"
        hook.remove()
        assert torch.equal(latents_of(pipe, **options), first), "the session goes on"
    untouched = isinstance(control, Combiner)
    assert seen == [(False, untouched), (isinstance(control, Guide), untouched)]
    assert same(parts_of(pipe), before)
    assert not pipe.transformer._forward_hooks | pipe.transformer._forward_pre_hooks
    assert torch.equal(run(None)[0], stock)


def test_an_exception_in_the_first_pass_leaves_the_blocks(pipe, latents_of):
    before, stock = parts_of(pipe), latents_of(pipe)
    hook = blocks_of(pipe)[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), attached(pipe, CONTROLS[0]):
        latents_of(pipe)
    hook.remove()
    assert same(parts_of(pipe), before)
    assert torch.equal(latents_of(pipe), stock)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.kind)
def test_a_session_that_is_over_holds_no_prediction(control, latents_of):
    pipe = tiny_flux()
    with attached(pipe, control, guidance_scale=2.0) as session:
        latents_of(pipe, cfg=2.0)
    guidance = session.stations[0].guidance
    held = [vars(session), vars(guidance) if guidance else {}]
    kept = [name for part in held for name, value in part.items() if isinstance(value, Tensor) and value.numel() > 1]
    assert kept == []
    assert session._now is None
    assert not session.bank.nbytes
