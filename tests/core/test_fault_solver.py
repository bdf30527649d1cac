"""Solvers that evaluate a step twice: steps are solver steps, and guides act at every evaluation with its own delta."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from evaluations import acting, evaluations
from matrix import heun
from references.guidance import identity_map
from references.guidance_models import Change, flux_velocity, sd3_velocity
from references.guidance_runs import SCALE, Guide, Model, Naive, attending, recording
from references.guidance_sample import guided
from test_guidance_against_naive import call_of, inputs
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import SLG, AlignedStyle, SoftPAG, StyleAligned, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
MODELS = {"FLUX": Model(tiny_flux, flux_velocity), "SD3": Model(tiny_sd3, sd3_velocity)}
both_models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
with_and_without_cfg = pytest.mark.parametrize("cfg", [False, True], ids=["", "CFG"])
HEADS = {1: [0.4, 0, 0, 0], 2: [0, 0, 0, 0.4]}


def soft(steps: str = "all") -> Guide:
    control = SoftPAG(where=Where(heads="L1H0 L2H3", steps=steps), u=0.4, strength=1.5)
    return attending(control, identity_map, HEADS)


def skipping(steps: str = "all") -> Guide:
    return Guide(SLG(where=Where(blocks="1", steps=steps), strength=1.5), lambda step: Change(skip={1}))


guides = pytest.mark.parametrize("make", [soft, skipping], ids=["SoftPAG", "SLG"])


# ---------------------------------------------------------------- Heun: evaluations 0, 1 | 2, 3 | 4, 5 | 6 of 4 steps

WINDOWS = [
    ("0-1", [0, 1, 2, 3]), ("0", [0, 1]), ("1", [2, 3]), ("3", [6]), ("1-2", [2, 3, 4, 5]), ("0%-50%", [0, 1, 2, 3]),
    ("50%-100%", [4, 5, 6]), ("25%-50%", [2, 3]), ("80%-85%", [6]), ("0,2", [0, 1, 4, 5]),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "expected"), WINDOWS)
@pytest.mark.parametrize("kind", [AlignedStyle, StyleAligned, SoftPAG, SLG])
def test_steps_under_heun_are_solver_steps(kind, steps, expected, pipe, latents_of):
    heun(pipe)
    where = Where(heads="L1H0 L2H3", steps=steps) if kind is SoftPAG else Where(steps=steps)
    control = SLG(where=Where(blocks="1", steps=steps)) if kind is SLG else kind(where=where)
    acted = acting(pipe, control, partial(latents_of, pipe, n=2, steps=4, height=32, width=32))
    assert len(acted) == 7, "evaluations of four steps"
    assert [index for index, here in enumerate(acted) if here] == expected


@pytest.mark.parametrize("steps", ["4-6", "4", "7-9"])
def test_a_window_beyond_the_last_solver_step_never_acts(steps, pipe, latents_of):
    """Index 4 of four steps: a call of that number comes, a step does not."""
    heun(pipe)
    control = AlignedStyle(where=Where(steps=steps))
    with pytest.warns(UserWarning, match="never acted"):
        acted = acting(pipe, control, partial(latents_of, pipe, n=2, steps=4, height=32, width=32))
    assert not any(acted)


@both_models
@with_and_without_cfg
@guides
@pytest.mark.parametrize("steps", ["all", "1-2"])
def test_a_guide_acts_at_every_evaluation_of_heun(make, steps, model, cfg):
    """Each evaluation has its own perturbed pass, none the delta of the one before."""
    pipe, case = model.build(**model.options), make(steps)
    heun(pipe)
    with recording(pipe.transformer) as calls:
        pipe(**call_of(model, cfg, steps=4))
    calls = [{n: v if n.endswith("_ids") else v.double() for n, v in one.items()} for one in calls[:2]]
    cond, uncond = calls[0], calls[1] if cfg else None
    if cfg and model.sd3:
        uncond, cond = ({name: value.chunk(2)[i] for name, value in calls[0].items()} for i in range(2))
    naive = Naive(model, (cond, uncond))
    with evaluations(pipe) as seen, attached(pipe, case.control):
        pipe(**call_of(model, cfg, steps=4))
    assert len(seen) == 7
    for index, one in enumerate(seen):
        x = one.latents.double()
        plain = guided(naive.cond(x, one.sigma), [], naive.uncond(x, one.sigma), SCALE)
        acts = steps == "all" or index in (2, 3, 4, 5)
        expected = case.velocity(naive, index // 2, one.sigma, x) if acts else plain
        size = expected.abs().max()
        assert not acts or (expected - plain).abs().max() > 1e-2 * size
        assert (one.velocity - expected).abs().max() < 1e-4 * size, f"evaluation {index}"


# ---------------------------------------------------------------- a loop of the caller's own


def midpoint(model: Model, case: Guide, cfg: bool, steps: int = 3) -> list[tuple[int, Tensor, float, list[Tensor]]]:
    """Every evaluation of a midpoint run under the guide: step, latents, sigma, predictions of prompts and negative.

    The scheduler moves once a step; the transformer is called at the step's latents and again halfway.
    """
    pipe = model.exact
    (cond, uncond), _ = inputs(model, cfg)
    pipe._guidance_scale = SCALE if cfg else 1.0
    pipe.scheduler.set_timesteps(steps, **({} if model.sd3 else {"mu": 0.6}))
    pipe.scheduler.set_begin_index(0)
    x, seen = cond.pop("hidden_states"), []
    if uncond:
        uncond.pop("hidden_states")

    def velocity(step: int, latents: Tensor, sigma: float) -> Tensor:
        time = torch.full((len(latents),), sigma * (1000 if model.sd3 else 1)).double()
        passes = [{**one, "hidden_states": latents, "timestep": time} for one in (cond, uncond) if one is not None]
        if model.sd3 and uncond is not None:
            batch = {name: torch.cat([passes[1][name], passes[0][name]]) for name in passes[0]}
            outs = list(reversed(pipe.transformer(**batch, return_dict=False)[0].chunk(2)))
        else:
            outs = [pipe.transformer(**one, return_dict=False)[0] for one in passes]
        seen.append((step, latents.clone(), sigma, [one.clone() for one in outs]))
        return outs[0] if uncond is None else outs[1] + SCALE * (outs[0] - outs[1])

    with torch.no_grad(), attached(pipe, case.control):
        for step, (sigma, following) in enumerate(pairwise(pipe.scheduler.sigmas.tolist())):
            half = x + (following - sigma) / 2 * velocity(step, x, sigma)
            change = velocity(step, half, (sigma + following) / 2)
            x = pipe.scheduler.step(change, pipe.scheduler.timesteps[step], x, return_dict=False)[0].double()
    return seen


@both_models
@with_and_without_cfg
@guides
@pytest.mark.parametrize("steps", ["all", "1-2"])
def test_a_guide_acts_at_both_evaluations_of_a_midpoint_step(make, steps, model, cfg):
    """Under CFG on FLUX the negative pass of each is told by its latents: no pass of its own, the same delta."""
    case = make(steps)
    naive = Naive(model, inputs(model, cfg)[0])
    seen = midpoint(model, case, cfg)
    assert [step for step, *_ in seen] == [0, 0, 1, 1, 2, 2]
    for index, (step, x, sigma, outs) in enumerate(seen):
        stock = [naive.cond(x, sigma), naive.uncond(x, sigma)][: len(outs)]
        expected = case.outputs(naive, step, sigma, x) if steps == "all" or step in (1, 2) else stock
        for name, mine, theirs in zip(("prompts", "negative"), outs, expected, strict=False):
            torch.testing.assert_close(
                mine, theirs, atol=2e-5, rtol=2e-5, msg=lambda text, at=(index, name): f"evaluation {at}: {text}"
            )


def counted(pipe: Any, run: Callable[[], Any]) -> int:
    """How often the last block of the transformer runs."""
    calls: list[None] = []
    last = [*pipe.transformer.transformer_blocks, *getattr(pipe.transformer, "single_transformer_blocks", ())][-1]
    hook = last.register_forward_hook(lambda *_: calls.append(None))
    try:
        run()
    finally:
        hook.remove()
    return len(calls)


@guides
def test_a_negative_pass_has_no_perturbed_pass_of_its_own(make, latents_of):
    """Three passes a step under true CFG, in diffusers' loop and in a midpoint loop; the model runs no fourth."""
    case, model = make(), MODELS["FLUX"]
    pipe = tiny_flux()
    with attached(pipe, case.control):
        assert counted(pipe, partial(latents_of, pipe, n=2, steps=3, cfg=2.0, height=32, width=32)) == 9
    assert counted(model.exact, lambda: midpoint(model, case, True)) == 18
    assert counted(model.exact, lambda: midpoint(model, case, False)) == 12


def test_a_set_is_shared_at_both_evaluations_of_a_midpoint_step():
    """Sharing acts within its steps and nowhere else, whatever the number of the call."""
    model = MODELS["FLUX"]
    case = Guide(AlignedStyle(where=Where(steps="1")), lambda step: Change())
    naive = Naive(model, inputs(model, True)[0])
    for step, x, sigma, outs in midpoint(model, case, True):
        stock = naive.cond(x, sigma), naive.uncond(x, sigma)
        for mine, plain in zip(outs, stock, strict=True):
            assert ((mine - plain).abs().amax() > 1e-2) == (step == 1)
