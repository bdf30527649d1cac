"""What guidance costs on the embedded models: a guided step against a stock step, in interleaved rounds.

python benchmarks/guidance_cost.py [MODEL ...]       about a minute a model on two cores

A step is all transformer calls that the pipeline makes in it (with its own classifier-free guidance where its settings
turn it on). The bound counts matrix multiplications only.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from attnctrl import APG, NAG, PAG, SLG, Control, OverGuidanceWarning, SoftPAG, Where, attached, load
from attnctrl.processors.attaching import host_of

PROMPTS, ROUNDS = ["a red fox", "a green teapot"], 15
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
}
"""torch counts the attention kernels of GPUs alone."""
Calls = list[dict[str, Any]]


def controls(blocks: int, guided: bool) -> dict[str, Control | None]:
    """What is timed; SoftPAG perturbs one head of the first, a middle and the last block."""
    places = {"first": 0, "middle": blocks // 2, "last": blocks - 1}
    head = {name: SoftPAG(where=Where(heads=f"L{block}H0")) for name, block in places.items()}
    return {
        "stock": None,
        "softpag, off": head["first"].model_copy(update={"strength": 0.0}),
        **{f"softpag, {name} block ({places[name]})": control for name, control in head.items()},
        "pag, middle third": PAG(),
        "slg, the block before the last": SLG(where=Where(blocks=str(blocks - 2), steps="all")),
        "nag": NAG(prompt="a rag"),
        **({"apg": APG(guidance_scale=3.0)} if guided else {}),
    }


def one_step(pipe: Any) -> Calls:
    """The arguments of the transformer calls of one step, of a run of two."""
    calls: Calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args, given: calls.append(given), with_kwargs=True)
    pipe(PROMPTS, num_inference_steps=2, output_type="latent")
    hook.remove()
    return calls[: len(calls) // 2]


def seconds(pipe: Any, calls: Calls, control: Control | None) -> float:
    """Of the second step in a session: the first one makes what lasts for the run."""
    with attached(pipe, control):
        for step in range(2):
            pipe.scheduler._step_index = step
            start = time.perf_counter()
            for given in calls:
                pipe.transformer(**given)
    return time.perf_counter() - start


def flops(pipe: Any, calls: Calls, control: Control | None) -> int:
    """Of one step."""
    pipe.scheduler._step_index = 0
    with attached(pipe, control), FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        for given in calls:
            pipe.transformer(**given)
    return counter.get_total_flops()


@torch.no_grad()
def main(models: list[str]) -> None:
    """Print a table for each model."""
    warnings.simplefilter("ignore", OverGuidanceWarning)
    print(f"{torch.get_num_threads()} thread(s), {ROUNDS} rounds, {len(PROMPTS)} pictures")
    for model in models:
        pipe = load(model, device="cpu")
        pipe.set_progress_bar_config(disable=True)
        calls = one_step(pipe)
        guided = len(calls) == 2 or getattr(pipe, "do_classifier_free_guidance", False)
        kinds = controls(len(host_of(pipe).edge.blocks(pipe.transformer)), guided)
        bounds = {name: flops(pipe, calls, control) for name, control in kinds.items()}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, control in kinds.items():
                times[name].append(seconds(pipe, calls, control))
        print(f"\n{model}: {len(calls)} call(s) a step, stock {1e3 * statistics.median(times['stock']):.1f} ms")
        print("median ratio to stock (quartiles), bound, share of the bound")
        for name, spent in times.items():
            ratios = sorted(a / b for a, b in zip(spent, times["stock"], strict=True))
            low, median, high = statistics.quantiles(ratios, n=4)
            bound = bounds[name] / bounds["stock"]
            print(f"  {name:32s} {median:.3f} ({low:.3f} - {high:.3f})  {bound:.3f}  {bound / median:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["tiny-flux", "tiny-sd3"])
