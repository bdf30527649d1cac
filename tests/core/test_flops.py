"""The cost of a shared step at the true sizes of FLUX.1-dev and SD3-medium, counted on the meta device."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from attnctrl import AlignedStyle, NaiveSharing, SoftPAG, Where, attached

ROWS, TEXT, SIDE, DOUBLE, SINGLE, HEADS, WIDTH = 4, 512, 64, 19, 38, 24, 128


class Pipe:
    """What a session needs of a pipeline: a transformer and a scheduler."""

    def __init__(self) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        with torch.device("meta"):
            self.transformer = FluxTransformer2DModel(guidance_embeds=True)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.scheduler.set_timesteps(2)


def call_flops(pipe: Pipe, control, by_block: list[int] | None = None) -> int:
    ids = torch.stack(torch.meshgrid(torch.zeros(1), *[torch.arange(SIDE * 1.0)] * 2, indexing="ij"), -1).reshape(-1, 3)
    meta = {"device": "meta"}
    arguments = {
        "hidden_states": torch.empty(ROWS, SIDE * SIDE, 64, **meta),
        "encoder_hidden_states": torch.empty(ROWS, TEXT, 4096, **meta),
        "pooled_projections": torch.empty(ROWS, 768, **meta),
        "timestep": torch.empty(ROWS, **meta),
        "guidance": torch.empty(ROWS, **meta),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }
    with torch.no_grad(), attached(pipe, control), FlopCounterMode(display=False) as counter:
        pipe.transformer(**arguments)
    if by_block is not None:
        by_block += block_flops(counter, ("transformer_blocks", "single_transformer_blocks"))
    return counter.get_total_flops()


def block_flops(counter: FlopCounterMode, lists: tuple[str, ...]) -> list[int]:
    """What each block of a call took, in running order."""
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    model = next(name for name in counts if "2DModel" in name and "." not in name)
    names = [f"{model}.{blocks}.{i}" for blocks in lists for i in range(DOUBLE + SINGLE)]
    return [counts[name] for name in names if name in counts]


@pytest.mark.parametrize("control", [AlignedStyle(), NaiveSharing()], ids=lambda c: c.kind)
def test_shared_step_is_within_one_percent_of_the_bound(control):
    pipe = Pipe()
    stock = call_flops(pipe, None)
    assert stock / ROWS == pytest.approx(74.4e12, rel=0.01), "the counter misses work"
    extra = 4 * (TEXT + SIDE * SIDE) * SIDE * SIDE * HEADS * WIDTH * (ROWS - 1) * SINGLE
    bound = 1 + extra / stock
    assert bound == pytest.approx(1.089, abs=0.001)
    assert call_flops(pipe, AlignedStyle(strength=0)) == stock
    assert call_flops(pipe, control) / stock == pytest.approx(bound, rel=0.01)


SD3_TEXT, SD3_LAYERS, SD3_WIDTH = 333, 24, 1536


def sd3_flops(pipe: Pipe, control, by_block: list[int] | None = None) -> int:
    meta = {"device": "meta"}
    arguments = {
        "hidden_states": torch.empty(ROWS, 16, 2 * SIDE, 2 * SIDE, **meta),
        "encoder_hidden_states": torch.empty(ROWS, SD3_TEXT, 4096, **meta),
        "pooled_projections": torch.empty(ROWS, 2048, **meta),
        "timestep": torch.empty(ROWS, **meta),
    }
    with torch.no_grad(), attached(pipe, control), FlopCounterMode(display=False) as counter:
        pipe.transformer(**arguments)
    if by_block is not None:
        by_block += block_flops(counter, ("transformer_blocks",))
    return counter.get_total_flops()


def sd3_transformer() -> SD3Transformer2DModel:
    with torch.device("meta"):
        return SD3Transformer2DModel(
            num_layers=SD3_LAYERS, num_attention_heads=24, caption_projection_dim=SD3_WIDTH, pos_embed_max_size=192
        )


@pytest.mark.parametrize(("additive", "rows"), [("none", 0), ("move", 0), ("copy", 1)])
def test_shared_step_on_sd3_is_within_one_percent_of_the_bound(additive, rows):
    """A shifted copy of the reference is one more row of four; the rest is what the additional keys cost."""
    pipe = Pipe()
    pipe.transformer = sd3_transformer()
    stock = sd3_flops(pipe, None)
    extra = 4 * (SD3_TEXT + SIDE * SIDE) * SIDE * SIDE * SD3_WIDTH * (ROWS - 1) * SD3_LAYERS * 2 // 3
    bound = 1 + rows / ROWS + extra / stock
    assert sd3_flops(pipe, AlignedStyle(strength=0)) == stock
    assert sd3_flops(pipe, AlignedStyle(additive=additive)) / stock == pytest.approx(bound, rel=0.01)
    assert bound - rows / ROWS == pytest.approx(1.150, abs=0.001)


def guides_from(*blocks: int) -> list[SoftPAG]:
    return [SoftPAG(where=Where(heads=f"L{block}H1, L{block}H2")) for block in blocks]


def test_a_perturbed_pass_costs_what_lies_above_its_lowest_block():
    """1 + (57 - L) / 57 passes (the card), exactly: all but the blocks below L; a double and a single block cost the same."""
    pipe, blocks, starts = Pipe(), [], (12, 40)
    stock = call_flops(pipe, None, blocks)
    assert len(blocks) == DOUBLE + SINGLE
    assert max(blocks) / min(blocks) < 1.001
    extra = call_flops(pipe, guides_from(*starts)) - stock
    assert extra == sum(stock - sum(blocks[:start]) for start in starts)
    assert extra / stock == pytest.approx(sum((57 - start) / 57 for start in starts), rel=0.01)


def test_a_perturbed_pass_of_sd3_has_the_conditional_half_alone():
    pipe, blocks, start = Pipe(), [], 9
    pipe.transformer, pipe.guidance_scale = sd3_transformer(), 3.0
    stock = sd3_flops(pipe, None, blocks)
    assert len(blocks) == SD3_LAYERS
    for halves in (1, 2):
        pipe.do_classifier_free_guidance = halves == 2
        extra = sd3_flops(pipe, guides_from(start)) - stock
        assert extra == (stock - sum(blocks[:start])) // halves
        assert extra / stock == pytest.approx((SD3_LAYERS - start) / SD3_LAYERS / halves, rel=0.01)
