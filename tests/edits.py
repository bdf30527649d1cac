"""What the tests of editing share: tiny pipelines, a source, one call and one attention under a control, and the naive."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from references.editing import Equation, editing
from references.flux import image_ids
from references.guidance_models import Change, flux_velocity, sd3_velocity
from references.guidance_runs import GRID, Model
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import Control, Region, attached
from attnctrl.bank import Bank
from attnctrl.board import CallState
from attnctrl.control import Call
from attnctrl.effect import Features
from attnctrl.layout import Layout, Rotary, Site, Step
from attnctrl.phases import controlled_attention
from attnctrl.processors.attaching import host_of
from attnctrl.processors.flux import FluxEdge
from attnctrl.processors.positions import rotate
from attnctrl.source import Source, SourceGuest

MODELS = {
    "FLUX": Model(tiny_flux, flux_velocity),
    "SD3": Model(tiny_sd3, sd3_velocity),
    "SD3.5": Model(tiny_sd3, sd3_velocity, {"qk_norm": "rms_norm", "dual": (0, 1)}),
}
SAID, NEGATIVE = "a red fox, an owl", "a rag"
TEXT, CLIP, STEPS, SCALE = 40, 32, 4, 3.0
BLOCKS = {"FLUX": range(2, 5), "SD3": range(3), "SD3.5": range(3)}
"""Blocks called `editable`."""
BOX = (0.0, 0.25, 0.5, 1.0)
INSIDE = torch.tensor([[float(row >= 1 and column < 3) for column in range(6)] for row in range(4)]).double().flatten()
"""Which tokens of the 4 x 6 grid lie in `BOX`."""
AT = {"step": 1}


def source(model: Model, steps: int = STEPS, seed: int = 3) -> Source:
    """A source of random latents, with random attention to the words of its prompt."""
    g = torch.Generator().manual_seed(seed)
    shape = (16, 2 * GRID[0], 2 * GRID[1]) if model.sd3 else (GRID[0] * GRID[1], 16)
    latents = torch.randn(steps + 1, *shape, generator=g).double()
    attention = torch.rand(TEXT, GRID[0] * GRID[1], generator=g)
    parts = host_of(model.exact).parts(SAID, max_sequence_length=TEXT - CLIP if model.sd3 else TEXT)
    return Source(SAID, latents, GRID, attention, tuple(range(TEXT)), parts)


def said(model: Model) -> tuple[Tensor, Tensor]:
    """The source's prompt as text and pooled text [1, ...]."""
    with torch.no_grad():
        if model.sd3:
            text, _, pooled, _ = model.exact.encode_prompt(
                SAID, None, None, do_classifier_free_guidance=False, max_sequence_length=TEXT - CLIP
            )
        else:
            text, pooled, _ = model.exact.encode_prompt(SAID, None, max_sequence_length=TEXT)
    return text.double(), pooled.double()


def passes(model: Model, cfg: bool, rows: int = 2, step: int = 1) -> list[dict[str, Any]]:
    """The transformer's arguments with the prompts and, under CFG, with the negative ones; the clock is set."""
    g = torch.Generator().manual_seed(7)
    scheduler = model.exact.scheduler
    scheduler.set_timesteps(STEPS, **({} if model.sd3 else {"mu": 0.6}))
    scheduler.set_begin_index(0)
    scheduler._step_index = step
    sigma = float(scheduler.sigmas[step])
    shape = (16, 2 * GRID[0], 2 * GRID[1]) if model.sd3 else (GRID[0] * GRID[1], 16)
    shared: dict[str, Any] = {
        "hidden_states": torch.randn(rows, *shape, generator=g).double(),
        "timestep": torch.full((rows,), sigma * (1000 if model.sd3 else 1)).double(),
    }
    if not model.sd3:
        shared |= {"img_ids": image_ids(*GRID), "txt_ids": torch.zeros(TEXT, 3)}
    texts = [
        {
            "encoder_hidden_states": torch.randn(rows, TEXT, 16, generator=g).double(),
            "pooled_projections": torch.randn(rows, 16, generator=g).double(),
        }
        for _ in range(2)
    ]
    return [shared | text for text in texts[: 1 + cfg]]


def ours(model: Model, control: Any, calls: list[dict[str, Any]], opened: Source) -> list[Tensor]:
    """What the transformer returns in each pass: one batch of both halves on SD3, two calls on FLUX."""
    pipe = model.exact
    pipe._guidance_scale = SCALE if len(calls) > 1 else 1.0
    with torch.no_grad(), attached(pipe, control, source=opened):
        if model.sd3 and len(calls) > 1:
            batch = {name: torch.cat([calls[1][name], calls[0][name]]) for name in calls[0]}
            return list(pipe.transformer(**batch, return_dict=False)[0].chunk(2))[::-1]
        return [pipe.transformer(**call, return_dict=False)[0] for call in calls]


def naive(
    model: Model, equation: Equation, calls: list[dict[str, Any]], opened: Source, blocks: Collection[int], **more: Any
) -> list[Tensor]:
    """The same by the dense forward, the source as row 0 with its latents of this step; it says the negative prompt in
    the negative pass."""
    found = []
    step = more.pop("step", 1)
    for number, call in enumerate(calls):
        wide = dict(call)
        text, pooled = said(model)
        first = {
            "hidden_states": opened.latents[step][None], "timestep": call["timestep"][:1],
            "encoder_hidden_states": call["encoder_hidden_states"][:1] if number else text,
            "pooled_projections": call["pooled_projections"][:1] if number else pooled,
        }  # fmt: skip
        for name, row in first.items():
            wide[name] = torch.cat([row, call[name]])
        with torch.no_grad():
            change = Change(editing(equation, blocks, **more))
            found.append(model.velocity(model.exact.transformer, wide, change)[1:])
    return found


def check(model: Model, control: Control, equation: Equation, cfg: bool, **more: Any) -> float:
    """One call against the naive one; the greatest difference. The case must differ from no edit."""
    from references.editing import plain

    step, blocks = more.pop("step", 1), more.pop("blocks")
    calls, opened = passes(model, cfg, step=step), source(model)
    expected = naive(model, equation, calls, opened, blocks, step=step, **more)
    stock = naive(model, plain, calls, opened, blocks, step=step)
    assert min((a - b).abs().max() for a, b in zip(expected, stock, strict=True)) > 1e-2, "no case"
    found = ours(model, control, calls, opened)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=2e-6)
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


# ---------------------------------------------------------------- one attention


def region_of(mask: Tensor) -> Region:
    """A region of the tokens where `mask` [rows, columns] is 1, a box each."""
    rows, columns = mask.shape
    boxes = tuple(
        Region(box=(column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
        for row, column in mask.nonzero().tolist()
    )
    return Region(parts=boxes)


def call_of(layout: Layout, rows: int, halves: int = 1, step: int = 0, steps: int = 28) -> Call:
    """A call of `rows` rows in so many halves, the source first in each."""
    opened = Source("", torch.zeros(steps + 1, layout.size, 1), layout.grid, torch.zeros(0, layout.size), (), ())
    size = rows // halves
    return Call(
        layout, Step(step, steps, torch.tensor(1 - step / steps)), tuple((i * size, (i + 1) * size) for i in range(halves)),
        1, (SourceGuest(opened),), (False, True)[-halves:], FluxEdge(), None, {}, torch.device("cpu"), Bank(),
        lambda text, picture: (), lambda picture: (), source=opened,
    )  # fmt: skip


def unturned(x: Tensor, rotary: Rotary) -> Tensor:
    return x


def attended(
    control: Control, call: Call, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary = None, gate: Tensor | None = None
) -> Tensor:
    """One attention [B, S, H, D] under a control, through the phases of every processor."""
    state = CallState(call.layout, {"joint": call.layout}, (control.plan(call),))
    turn: Callable[[Tensor, Rotary], Tensor] = unturned if rotary is None else rotate
    return controlled_attention(
        q, k, v, state=state, gates=((0, gate),), site=Site(0, "joint", 0, q.shape[2], None),  # type: ignore[arg-type]
        rotary=rotary, rotate=turn, backend=None,
    )  # fmt: skip


def fused(control: Control, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as the control's features leave them."""
    site = Site(0, "joint", 0, q.shape[2], None)  # type: ignore[arg-type]
    return control.plan(call).features(Features(q, k, v, call.layout, None, site))
