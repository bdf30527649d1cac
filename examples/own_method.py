"""A method of your own in one file: what chosen heads say is left out.

python examples/own_method.py [FOLDER]; attnctrl --load examples/own_method.py generate fox --control quiet:heads=L2H0
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnctrl import Control, Recipe, generate, load, register
from attnctrl.effect import Effect
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.sheets import contact_sheet


@dataclass(frozen=True)
class Quiet(Effect):
    strength: float

    def output(self, at):
        return at.out() * (1 - self.strength * (1 if at.gate is None else at.gate[:, None]))  # [B, S, H, D]


@register
class QuietHeads(Control):
    """Chosen heads say less: strength 1 is silence."""

    kind: Literal["quiet"] = "quiet"

    def plan(self, call):
        return Quiet(self.strength)


if __name__ == "__main__":
    (folder := Path([*sys.argv, "attnctrl-out/examples"][1])).mkdir(parents=True, exist_ok=True)
    pipe, recipe = load("tiny-sd3"), Recipe(prompts=("a fox, comic", "a house, sticker"), seed=3)
    rows = [sheet_row(generate(pipe, recipe), "Plain")]
    recipe = recipe.model_copy(update={"control": (QuietHeads(where={"blocks": "4"}),)})
    contact_sheet([*rows, sheet_row(generate(pipe, recipe), "Block 4 is silent")]).save(folder / "own-method.png")
