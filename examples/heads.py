"""Guidance by single heads: a shipped preset, and heads by name.

python examples/heads.py [FOLDER]
"""

import sys
from pathlib import Path

from attnctrl import Recipe, SoftPAG, Where, generate, load
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.presets import read_preset
from attnctrl.pipelines.sheets import contact_sheet

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
folder.mkdir(parents=True, exist_ok=True)

pipe = load("tiny-sd3")
comic = read_preset("tiny-sd3-style-comic")  # attnctrl heads presets lists them, attnctrl heads search finds more
comic.check(pipe)
named = SoftPAG(where=Where(heads="L2H1 L3H1"), strength=5.0, u=0.5)

recipe = Recipe(prompts=("a house", "a fish", "a mushroom, comic", "a key"), seed=1)
rows = [
    sheet_row(generate(pipe, recipe), "Plain"),
    sheet_row(
        generate(pipe, recipe.model_copy(update={"control": (comic.control(),)})), f"{comic.name}: {comic.heads}"
    ),
    sheet_row(generate(pipe, recipe.model_copy(update={"control": (named,)})), f"{named.where.heads}, w 5"),
]
contact_sheet(rows).save(folder / "heads.png")
