"""What an evaluation costs beside bare generation, and what a second process gains.

python benchmarks/eval_cost.py --out docs/eval-cost.json

Overhead: the same sets drawn by `generate` alone and by a run (PNGs, hashes, ledger, embedded metrics), one thread,
interleaved set by set. Scaling: the command with one and with two processes of one thread each; the time of the same
command on its finished folder (imports, loading, report) is taken off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from attnctrl import generate, load
from attnctrl.embedded import intervals
from attnctrl.evals.metrics.kinds import EMBEDDED, metrics
from attnctrl.evals.runs.arms import arms
from attnctrl.evals.runs.config import RunConfig, seed_of
from attnctrl.evals.runs.run import Run
from attnctrl.evals.runs.sets import read_sets, spread
from attnctrl.pipelines.recipe import Recipe


def overhead(model: str, sets: int) -> list[float]:
    """Seconds of a run over seconds of bare generation, for each set under plain and AlignedGen."""
    torch.set_num_threads(1)
    pipe, chosen, found = load(model, device="cpu"), spread(read_sets("embedded"), sets), arms(["plain", "alignedgen"])
    config = RunConfig(model=model, sets="embedded", arms=found, baseline="plain", metrics=EMBEDDED)
    with tempfile.TemporaryDirectory() as folder:
        run, ratios = Run(pipe, config, chosen, metrics(EMBEDDED), Path(folder) / "run"), []
        run.item(found[0], chosen[0])
        for one in chosen:
            for arm in found:
                recipe = Recipe(model=model, prompts=one.prompts, control=arm.on(one), seed=seed_of(0, one.id))
                begin = time.monotonic()
                generate(pipe, recipe)
                middle = time.monotonic()
                row = run.item(arm, one)
                run.ledger.append(f"{arm.slug}/{one.id}", [row.model_dump()])
                ratios.append((time.monotonic() - middle) / (middle - begin))
    return ratios


def seconds(model: str, processes: int, sets: int) -> float:
    """Of the drawing and measuring of so many sets by the command."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        words = [
            "-m",
            "attnctrl",
            "eval",
            "style",
            "--model",
            model,
            "--methods",
            "plain,alignedgen",
            "--first",
            str(sets),
        ]
        took = []
        for _ in range(2):
            begin = time.monotonic()
            subprocess.run([*launch, *words, "--out", f"{folder}/run"], check=True, stdout=subprocess.DEVNULL)
            took.append(time.monotonic() - begin)
    return took[0] - took[1]


def main() -> None:
    """Measure both; write OUT and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-sd3")
    parser.add_argument("--sets", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    ratios = overhead(options.model, options.sets)
    one, two = (seconds(options.model, count, options.sets) for count in (1, 2))
    result = {
        "model": options.model,
        "sets": options.sets,
        "run over bare generation": [round(x, 3) for x in intervals.mean(np.array(ratios))],
        "seconds with one process": round(one, 1),
        "seconds with two": round(two, 1),
        "speed-up": round(one / two, 2),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
