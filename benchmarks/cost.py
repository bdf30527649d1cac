"""What a control costs: whole transformer calls, off and shared, as ratios to stock in interleaved rounds.

python benchmarks/cost.py                about two minutes on two cores

The model is FLUX-shaped and random (2 double and 4 single blocks, 8 heads of 64), four pictures of 512 px with 64 text
tokens. The bound counts matrix multiplications only.
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from attnctrl import AlignedStyle, Control, StyleAligned, attached

ROWS, TEXT, SIDE, ROUNDS = 4, 64, 32, 9
CONTROLS: dict[str, Control | None] = {
    "stock": None,
    "off": AlignedStyle(strength=0),
    "aligned": AlignedStyle(),
    "aligned, strength 0.5": AlignedStyle(strength=0.5),
    "stylealigned": StyleAligned(),
}


def transformer(device: str) -> FluxTransformer2DModel:
    """The random model."""
    with torch.device(device):
        return FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=64,
            num_attention_heads=8,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            axes_dims_rope=(8, 28, 28),
        ).eval()


def arguments(device: str, side: int = SIDE) -> dict[str, Any]:
    """The inputs of one call on a grid of so many tokens a side."""
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(side * 1.0), torch.arange(side * 1.0))
    return {
        "hidden_states": torch.zeros(ROWS, side * side, 64, device=device).normal_(),
        "encoder_hidden_states": torch.zeros(ROWS, TEXT, 64, device=device).normal_(),
        "pooled_projections": torch.zeros(ROWS, 64, device=device).normal_(),
        "timestep": torch.ones(ROWS, device=device),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }


@torch.no_grad()
def main() -> None:
    """Print the table."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    flops = {}
    for name, control in CONTROLS.items():
        pipe = SimpleNamespace(transformer=transformer("meta"), scheduler=scheduler)
        with attached(pipe, control), FlopCounterMode(display=False) as counter:
            pipe.transformer(**arguments("meta"))
        flops[name] = counter.get_total_flops()
    pipe, inputs = SimpleNamespace(transformer=transformer("cpu"), scheduler=scheduler), arguments("cpu")
    times: dict[str, list[float]] = {name: [] for name in CONTROLS}
    for _ in range(ROUNDS):
        for name, control in CONTROLS.items():
            with attached(pipe, control):
                start = time.perf_counter()
                pipe.transformer(**inputs)
                times[name].append(time.perf_counter() - start)
    print(f"{torch.get_num_threads()} thread(s), {ROUNDS} rounds")
    print("median ratio to stock (range), bound, share of the bound")
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["stock"], strict=True)]
        median, bound = statistics.median(ratios), flops[name] / flops["stock"]
        print(f"  {name:22s} {median:.3f} ({min(ratios):.3f} - {max(ratios):.3f})  {bound:.3f}  {bound / median:.2f}")


if __name__ == "__main__":
    main()
