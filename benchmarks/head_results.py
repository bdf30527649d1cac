"""The searched heads of the embedded models: a table of held-out effects, the curves of the searches, and pictures.

python benchmarks/head_results.py --rounds docs/heads --out docs/images

Reads docs/heads/MODEL-RUN.json (a search's rounds.json) and the presets that ship; see docs/heads.md for the searches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from attnctrl import load
from attnctrl.pipelines.presets import HeadPreset, read_preset, shipped
from attnctrl.pipelines.sheets import SheetRow, contact_sheet

MODELS = ("tiny-sd3", "tiny-flux")
PROMPTS = {"quality": ["a cat, comic", "a star, watercolor", "a crown, sticker", "a fish, line art"]}
PLAIN = ["a cat", "a star", "a crown", "a fish"]


def presets(model: str) -> list[HeadPreset]:
    """The model's own, measured presets."""
    found = [read_preset(name) for name in shipped() if name.startswith(model)]
    return [one for one in found if one.effect]


def table() -> str:
    """Markdown: heads, gain in the search, and the difference on held-out pictures beside random heads."""
    head = "| model | objective | heads | plain, held out | heads' difference | random heads' difference |"
    lines = [head, "|---" * 6 + "|"]
    for model in MODELS:
        for one in presets(model):
            effect = one.effect
            assert effect
            cells = [model, effect.objective, one.heads.replace(",", ", "), f"{effect.plain:.3g}"]
            for value in (effect.difference, effect.random_heads):
                cells.append("{:.3g} [{:.3g}, {:.3g}]".format(*value) if value else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(folder: Path, path: Path) -> None:
    """The best candidate's gain in each round with its standard error, a panel an objective."""
    runs: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        model = next(m for m in MODELS if file.name.startswith(m))
        for objective, rounds in json.loads(file.read_text()).items():
            runs.setdefault(objective, {})[model] = [max(one["gains"].values()) for one in rounds]
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, (objective, models) in zip(figure.subplots(2, 3).flat, runs.items(), strict=False):
        for model, points in models.items():
            gains, errors = zip(*points, strict=True)
            axes.errorbar(range(1, len(points) + 1), gains, errors, marker="o", capsize=3, label=model)
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set(title=objective, xticks=range(1, len(points) + 1))
        axes.grid(alpha=0.3)
    figure.supxlabel("round")
    figure.supylabel("best candidate's gain")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=90)


def sheet(model: str) -> Any:
    """Held-out prompts plain, and by every preset."""
    pipe = load(model, device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def row(title: str, prompts: list[str], control: Any) -> SheetRow:
        generators = [torch.Generator().manual_seed(100 + i) for i in range(len(prompts))]
        return SheetRow(title, pipe(prompts, control=control, generator=generators).images, prompts, frozenset())

    rows = [row("plain", PLAIN, None)]
    for one in presets(model):
        assert one.effect
        name = one.effect.objective
        if name in PROMPTS:
            rows.append(row("plain, with a style", PROMPTS[name], None))
        rows.append(row(f"{name}: {one.heads}", PROMPTS.get(name, PLAIN), one.control()))
    return contact_sheet(rows)


def main() -> None:
    """Print the table; write heads-curves.png and heads-MODEL.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(table())
    curves(options.rounds, options.out / "heads-curves.png")
    for model in MODELS:
        sheet(model).save(options.out / f"heads-{model}.png")


if __name__ == "__main__":
    main()
