"""Several pictures to follow, each where its mask is white and as strongly as is said.

python examples/references.py [FOLDER]
"""

import sys
from pathlib import Path

from attnctrl import AlignedStyle, Recipe, Reference, Region, generate, load
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.sheets import contact_sheet

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
folder.mkdir(parents=True, exist_ok=True)

pipe = load("tiny-sd3")
fish, star = generate(pipe, Recipe(prompts=("a fish, watercolor", "a star, blueprint"), seed=3)).pictures
middle, edge = Region(box=(0.2, 0.2, 0.8, 0.8)), Region(box=(0, 0, 1, 1)) - Region(box=(0.2, 0.2, 0.8, 0.8))
first = Reference(picture=fish, caption="a fish", mask=middle)
second = Reference(picture=star, caption="a star", mask=edge, strength=0.5)

recipe = Recipe(prompts=("a key", "a house", "a mushroom"), seed=5)
rows = [sheet_row(generate(pipe, recipe), "Plain")]
for title, reference in {"One picture's middle": first, "The other's edge too": (first, second)}.items():
    control = AlignedStyle(reference=reference, adain_queries=False, adain_keys=False)
    rows.append(sheet_row(generate(pipe, recipe.model_copy(update={"control": (control,)})), title))
contact_sheet(rows).save(folder / "references.png")
