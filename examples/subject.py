"""A subject kept: FreeCus takes a picture's foreground, which the attention to its word finds, into other styles.

python examples/subject.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from attnctrl import FreeCus, Recipe, Reference, Where, generate, load, observe
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.sheets import contact_sheet

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
folder.mkdir(parents=True, exist_ok=True)

pipe = load("tiny-flux")
seen = observe(
    pipe, "a purple mushroom, flat icon", ["purple", "mushroom"], generator=torch.Generator().manual_seed(23)
)
reference = Reference(picture=seen.image, caption="a mushroom", mask=seen.region("purple") | seen.region("mushroom"))

recipe = Recipe(
    model="tiny-flux", prompts=("a mushroom, comic", "a mushroom, watercolor", "a mushroom, sticker"), seed=5
)
kept = FreeCus(reference=reference, where=Where(blocks="all"))  # FLUX.1's ten vital blocks if not given
rows = [
    sheet_row(generate(pipe, recipe), "Plain: any colour"),
    sheet_row(generate(pipe, recipe.model_copy(update={"control": (kept,)})), "FreeCus: the picture's"),
]
contact_sheet(rows).save(folder / "subject.png")
