"""What the metrics read of true sets: the shipped captioned sets, drawn by the world itself.

python benchmarks/true_sets.py --artwork ~/.cache/attnctrl/artwork.npz --out docs/style-sets-world.json

`one draw a set`: the four pictures share their style's parameters; `one a picture`: each has its own, as plain pictures
of a model that learnt the world have. The most and the least that can be reached.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from attnctrl.embedded import artwork
from attnctrl.embedded.scenes import FIRST, World, render, sample
from attnctrl.evals.metrics.kinds import EMBEDDED, metrics
from attnctrl.evals.metrics.metric import DrawnSet
from attnctrl.evals.runs.sets import StyleSet, read_sets
from attnctrl.evals.runs.summary import figure_of


def drawn(one: StyleSet, together: bool, art: dict[str, np.ndarray], rng: np.random.Generator) -> DrawnSet:
    """A set drawn by the world."""
    shape = (((64, 64), 1.0),)
    names = [text.split(" ", 1)[1] for text in one.subjects or ()]
    scenes = [sample(rng, World((name,), (str(one.style),), FIRST.artworks, shape, 0.0, 0.0)) for name in names]
    if together:
        scenes = [replace(scene, params=scenes[0].params) for scene in scenes]
    pictures = [Image.fromarray(render(scene, art).image) for scene in scenes]
    return DrawnSet(one.prompts, pictures, one.subjects, one.style)


def main() -> None:
    """Measure both; write OUT and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artwork", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    art, rng, measures = artwork.load(options.artwork), np.random.default_rng(0), metrics(EMBEDDED)
    sets = [one for one in read_sets("embedded") if one.reference is None]
    result = {}
    for name, together in (("one draw a set", True), ("one a picture", False)):
        found = [drawn(one, together, art, rng) for one in sets]
        values = {m.name: np.array([np.nan if (v := m(d)) is None else v for d in found]) for m in measures}
        figures = {metric: figure_of(column) for metric, column in values.items()}
        result[name] = {m: {k: round(v, 4) for k, v in asdict(f).items()} for m, f in figures.items() if f}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
