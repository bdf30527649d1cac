"""Does sharing keep a style? Plain, naive, StyleAligned and AlignedGen on the same prompts and seeds, judged.

python benchmarks/style_sets.py --sets 40 --out docs/style-sets

Each set has one style and four subjects; the first picture leads. Per set and method:
  agreement  1 - mean distance of the targets' style parameters to the leader's, as the judge reads them in that style
  subject    share of targets whose subject the judge names as asked
  leakage    share of targets that the judge takes for the leader's subject
  style      share of targets whose style the judge names as asked
Intervals are 95% bootstrap intervals over sets, of the mean and of the paired difference to plain.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attnctrl import AlignedStyle, Control, NaiveSharing, StyleAligned, load
from attnctrl.embedded.judge import CIRCULAR, PARAMS, Judge
from attnctrl.embedded.scenes import SUBJECT_NAMES, article, held_out
from attnctrl.embedded.styles import STYLES
from attnctrl.pipelines.sheets import SheetRow, contact_sheet

METHODS: dict[str, tuple[Control, ...]] = {
    "plain": (),
    "naive": (NaiveSharing(),),
    "stylealigned": (StyleAligned(),),
    "aligned, no ShiftPE": (AlignedStyle(shift=(0, 0)),),
    "aligned": (AlignedStyle(),),
}
METRICS = ("agreement", "subject", "leakage", "style")
SIZE, SHOWN, DRAWS = 4, 4, 10_000


def draw_sets(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Styles in turn, each with four different subjects whose (subject, style) pair was trained on."""
    rng = np.random.default_rng(seed)
    named = [name for name, style in STYLES.items() if style.named]
    sets = []
    for i in range(count):
        style = named[i % len(named)]
        known = [subject for subject in SUBJECT_NAMES if not held_out(subject, style)]
        sets.append((style, [str(s) for s in rng.choice(known, SIZE, replace=False)]))
    return sets


def score(judge: Judge, images: np.ndarray, style: str, subjects: list[str]) -> dict[str, float]:
    """The metrics of one set; images uint8 [4, H, W, 3], the leader first."""
    seen = judge(images, style=style)
    named = [judge.subjects[i] for i in seen["subject"].argmax(1)]
    gaps = np.abs(seen["params"][1:] - seen["params"][:1])
    for i, name in enumerate(PARAMS):
        if name in CIRCULAR:
            gaps[:, i] = 2 * np.minimum(gaps[:, i], 1 - gaps[:, i])
    styles = seen["style"][1:].argmax(1)
    return {
        "agreement": float(1 - np.nanmean(gaps)),
        "subject": float(np.mean([a == b for a, b in zip(named[1:], subjects[1:], strict=True)])),
        "leakage": float(np.mean([a == subjects[0] for a in named[1:]])),
        "style": float(np.mean([judge.styles[i] == style for i in styles])),
    }


def interval(values: np.ndarray) -> list[float]:
    """Mean and 95% bootstrap interval over sets."""
    picks = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return [round(float(x), 3) for x in (values.mean(), low, high)]


def run(count: int, seed: int) -> tuple[dict[str, dict[str, np.ndarray]], Image.Image]:
    """Scores [metric][set] of every method, and a sheet of the first sets."""
    pipe, judge = load("tiny-flux", device="cpu"), Judge.load()
    scores: dict[str, dict[str, list[float]]] = {name: {metric: [] for metric in METRICS} for name in METHODS}
    rows = []
    for i, (style, subjects) in enumerate(draw_sets(count, seed)):
        prompts = [f"{article(subject)}, {style}" for subject in subjects]
        for name, control in METHODS.items():
            generators = [torch.Generator().manual_seed(seed + SIZE * i + j) for j in range(SIZE)]
            pictures = pipe(prompts, control=control, generator=generators).images
            for metric, value in score(judge, np.stack([np.asarray(p) for p in pictures]), style, subjects).items():
                scores[name][metric].append(value)
            if i < SHOWN:
                rows.append(SheetRow(f"{style}: {name}", pictures, prompts, frozenset({0})))
        print(f"set {i + 1} of {count}", flush=True)
    arrays = {name: {metric: np.array(v) for metric, v in values.items()} for name, values in scores.items()}
    return arrays, contact_sheet(rows)


def table(result: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table: mean [interval]."""
    lines = ["| method | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, values in result.items():
        cells = [f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for v in (values[m] for m in METRICS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the study; write OUT.json, OUT.png and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scores, sheet = run(options.sets, options.seed)
    means = {name: {m: interval(v) for m, v in values.items()} for name, values in scores.items()}
    gains = {
        name: {m: interval(v - scores["plain"][m]) for m, v in values.items()}
        for name, values in scores.items()
        if name != "plain"
    }
    body = {"sets": options.sets, "seed": options.seed, "means": means, "difference to plain": gains}
    options.out.with_suffix(".json").write_text(json.dumps(body, indent=2) + "\n")
    sheet.save(options.out.with_suffix(".png"))
    print(table(means), table(gains), sep="\n\n")


if __name__ == "__main__":
    main()
