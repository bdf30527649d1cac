"""Whole runs of `open_source` and `edit` against naive Euler loops in float64: the source replayed beside its edit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from edits import BLOCKS, BOX, INSIDE
from references.editing import (
    Equation,
    addit,
    colorctrl,
    consistedit,
    ditctrl,
    editing,
    masactrl,
    plain,
    stableflow,
)
from references.flux import image_ids
from references.guidance_models import Change, flux_velocity, sd3_velocity
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

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
    edit,
    open_source,
)

HEIGHT, WIDTH, GRID, STEPS, SCALE = 32, 48, (4, 6), 4, 3.0
CALL: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}
KINDS: dict[str, tuple[Callable[[], Any], bool, dict[str, Any]]] = {
    "FLUX": (lambda: tiny_flux(cls=ControlledFluxPipeline), False, {"max_sequence_length": 12}),
    "FLUX, CFG": (
        lambda: tiny_flux(cls=ControlledFluxPipeline),
        True,
        {"max_sequence_length": 12, "true_cfg_scale": SCALE, "negative_prompt": "a rag"},
    ),
    "SD3": (
        lambda: tiny_sd3(cls=ControlledStableDiffusion3Pipeline),
        False,
        {"max_sequence_length": 8, "guidance_scale": 1.0},
    ),
    "SD3, CFG": (
        lambda: tiny_sd3(cls=ControlledStableDiffusion3Pipeline),
        True,
        {"max_sequence_length": 8, "guidance_scale": SCALE, "negative_prompt": "a rag"},
    ),
    "SD3.5, CFG": (
        lambda: tiny_sd3(qk_norm="rms_norm", dual=(0, 1), cls=ControlledStableDiffusion3Pipeline),
        True,
        {"max_sequence_length": 8, "guidance_scale": SCALE, "negative_prompt": "a rag"},
    ),
}


@functools.cache
def exact(kind: str) -> Any:
    """The pipeline in float64, text encoders too."""
    return KINDS[kind][0]().to(torch.float64)


def words(pipe: Any, prompt: str, length: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        if hasattr(pipe, "tokenizer_3"):
            text, _, pooled, _ = pipe.encode_prompt(
                prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=length
            )
        else:
            text, pooled, _ = pipe.encode_prompt(prompt, None, max_sequence_length=length)
    return text, pooled


def velocity(kind: str, x: Tensor, sigma: float, prompts: list[str], equation: Equation, blocks: Any) -> Tensor:
    """Classifier-free guidance over the dense forward; row 0 is the source."""
    pipe, guided, call = exact(kind), KINDS[kind][1], KINDS[kind][2]
    sd3 = hasattr(pipe, "tokenizer_3")

    def said(texts: list[str]) -> Tensor:
        rows = [words(pipe, text, call["max_sequence_length"]) for text in texts]
        more = {} if sd3 else {"img_ids": image_ids(*GRID), "txt_ids": torch.zeros(rows[0][0].shape[1], 3)}
        arguments = {
            "hidden_states": x, "encoder_hidden_states": torch.cat([a for a, _ in rows]),
            "pooled_projections": torch.cat([b for _, b in rows]),
            "timestep": torch.full((len(x),), sigma * (1000 if sd3 else 1)).double(), **more,
        }  # fmt: skip
        with torch.no_grad():
            return (sd3_velocity if sd3 else flux_velocity)(
                pipe.transformer, arguments, Change(editing(equation, blocks))
            )

    positive = said(prompts)
    if not guided:
        return positive
    negative = said(["a rag"] * len(prompts))
    return negative + SCALE * (positive - negative)


def naive(kind: str, start: Tensor, prompts: list[str], of: Callable[[int], Equation], blocks: Any) -> Tensor:
    """Latents [STEPS + 1, rows, ...] of a run that begins with `start` [rows, ...]."""
    found = [start]
    for i, (sigma, after) in enumerate(pairwise(exact(kind).scheduler.sigmas.tolist())):
        v = velocity(kind, found[-1], sigma, prompts, of(i), blocks)
        found.append(found[-1].float() + (after - sigma) * v)  # the scheduler rounds the latents to float32
    return torch.stack(found)


SECOND = Where(blocks="1", steps="1-2")


def later(equation: Equation) -> Callable[[int], Equation]:
    """The equation at steps 1 and 2."""
    return lambda i: equation if i in (1, 2) else plain


CASES: dict[str, tuple[Any, Callable[[int], Equation], Callable[[str], Any]]] = {
    "consistedit": (
        ConsistEdit(region=Region(box=BOX), alpha=0.5),
        lambda i: consistedit(INSIDE, structure=i < 2),
        lambda model: BLOCKS[model],
    ),
    "ditctrl": (DiTCtrl(region=Region(box=BOX), where=SECOND), later(ditctrl(INSIDE)), lambda model: [1]),
    "masactrl": (MasaCtrl(where=SECOND), later(masactrl()), lambda model: [1]),
    "stableflow": (StableFlow(where=SECOND), later(stableflow()), lambda model: [1]),
    "addit": (AddIt(where=SECOND, early=1.0), later(addit()), lambda model: [1]),
    "colorctrl": (
        ColorCtrl(where=SECOND, region=Region(box=BOX)),
        later(colorctrl(INSIDE)),
        lambda model: [1],
    ),
}
RUNS = [(kind, "consistedit") for kind in KINDS]
RUNS += [(kind, case) for kind in ("FLUX, CFG", "SD3.5, CFG") for case in CASES if case != "consistedit"]
EMPTY = (
    CASES["consistedit"][0], DiTCtrl(where=SECOND), CASES["masactrl"][0], StableFlow(where=SECOND, region=Region(box=BOX)),
    CASES["colorctrl"][0],
)  # fmt: skip
"""What leaves a picture as it is where nothing is asked for. Not so Add-it, whose edits read the source beside
themselves, nor foreground and background apart, which the source's own attention is not."""


@pytest.mark.parametrize(("kind", "case"), RUNS)
def test_a_whole_edit_equals_the_naive_loop(kind, case):
    control, equation, blocks = CASES[case]
    pipe, call = exact(kind), {**CALL, **KINDS[kind][2]}
    opened = open_source(pipe, "a red fox", seed=5, **call)
    edited = edit(pipe, opened, "a blue owl", control, compare=False)
    chosen = blocks(kind.split(",")[0])
    start = opened.source.latents[0]
    alone = naive(kind, start[None], ["a red fox"], lambda i: plain, chosen)
    torch.testing.assert_close(opened.source.latents, alone[:, 0], atol=2e-6, rtol=2e-6)
    both = naive(kind, torch.stack([start, start]), ["a red fox", "a blue owl"], equation, chosen)
    torch.testing.assert_close(both[:, 0], alone[:, 0], atol=1e-9, rtol=1e-9)
    scale = both.abs().max()
    assert (both[-1, 1] - alone[-1, 0]).abs().max() > 1e-2 * scale, "no case"
    difference = (edited.source.latents - both[:, 1]).abs().max() / scale
    assert difference < 5e-6, difference


@pytest.mark.parametrize("kind", ["FLUX, CFG", "SD3.5, CFG"])
@pytest.mark.parametrize("control", EMPTY, ids=lambda control: control.kind)
def test_an_empty_edit_is_the_source(kind, control):
    """The same prompt: the target's row is the source's, whatever the mask, to the rounding of another batch size."""
    pipe, call = exact(kind), {**CALL, **KINDS[kind][2]}
    opened = open_source(pipe, "a red fox", seed=5, **call)
    edited = edit(pipe, opened, "a red fox", control, compare=False)
    assert edited.changed < 1e-3
    torch.testing.assert_close(edited.source.latents, opened.source.latents, atol=2e-6, rtol=2e-6)
