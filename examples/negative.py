"""A negative prompt within attention (NAG), as distilled models need it, which have no classifier-free guidance.

python examples/negative.py [FOLDER]
"""

import sys
from pathlib import Path

from attnctrl import NAG, Recipe, generate, load
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.sheets import contact_sheet

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
folder.mkdir(parents=True, exist_ok=True)

pipe = load("tiny-flux")
recipe = Recipe(
    model="tiny-flux", prompts=("a fish, comic", "a mushroom", "a house", "a key, sticker"), seed=2, true_cfg_scale=1.0
)
rows = [sheet_row(generate(pipe, recipe), "Without guidance")]
for word in ("blueprint", "watercolor"):
    made = generate(pipe, recipe.model_copy(update={"control": (NAG(prompt=word),)}))
    rows.append(sheet_row(made, f"Away from “{word}”"))
contact_sheet(rows).save(folder / "negative.png")
