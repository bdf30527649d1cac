"""Samples per core-second of a training step of the embedded models: what each way of computing it gives.

    taskset -c 0 python benchmarks/training_pace.py tiny-sd3 --batch 96

One thread; a step is forward, loss, backward and both optimizers on random latents of 64 px.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from attnctrl.embedded import MODELS, model_folder
from attnctrl.embedded.fast import fast
from attnctrl.embedded.model import Tokens
from attnctrl.embedded.muon import Muon, split
from attnctrl.embedded.training import NETS


def step_of(model: str, batch: int, bf16: bool, plain: bool, compiled: bool) -> Callable[[], None]:
    """A training step of a fresh model."""
    tokens = Tokens.load(model_folder("tiny-flux"))
    net = NETS[model](tokens)
    for encoder in (net.t5, *net.clips()):
        encoder.requires_grad_(False)
    matrices, rest = split(net)
    products = torch.bfloat16 if bf16 else torch.float32
    optimizers = [Muon(matrices, lr=1e-3, dtype=products), torch.optim.AdamW(rest, lr=1e-3, fused=True)]
    if compiled:
        for block in net.transformer.modules():
            if type(block).__name__.endswith("TransformerBlock"):
                block.compile(dynamic=False)
    x, sigma = torch.randn(batch, 16, 16, 16), torch.rand(batch)
    clip_ids, t5_ids = tokens.encode(["a red fox left of a blue key, comic"] * batch)

    def step() -> None:
        with fast(plain), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            velocity = net(x, sigma, clip_ids, t5_ids)
        (velocity.float() - x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def pace(step: Callable[[], None], batch: int, rounds: int) -> tuple[float, float]:
    """Samples per second of processor time, and seconds until the second step is done."""
    begin = time.perf_counter()
    for _ in range(2):
        step()
    first, before = time.perf_counter() - begin, time.process_time()
    for _ in range(rounds):
        step()
    return batch * rounds / (time.process_time() - before), first


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "float32": (False, False, False),
        "bfloat16": (True, False, False),
        "bfloat16, plain attention": (True, True, False),
        "bfloat16, plain attention, compiled blocks": (True, True, True),
    }
    print(f"| {options.model}, batch {options.batch} | samples per core-second | two first steps, s |\n|---|---|---|")
    for name, way in ways.items():
        torch._dynamo.reset()
        found, first = pace(step_of(options.model, options.batch, *way), options.batch, options.rounds)
        print(f"| {name} | {found:.1f} | {first:.0f} |", flush=True)


if __name__ == "__main__":
    main()
