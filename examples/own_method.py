"""A method of your own in one file: what chosen heads say is left out.

python examples/own_method.py [FOLDER]; attnctrl --load examples/own_method.py generate fox --control quiet:heads=L2H0
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnctrl import Control, Recipe, generate, load, register
from attnctrl.effect import Attended, Effect
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.sheets import contact_sheet


@dataclass(frozen=True)
class Quiet(Effect):
    strength: float

    def output(self, at: Attended):
        out = at.out()  # [B, S, H, D]; the gate says which heads were chosen [H]
        return out * (1 - self.strength * (1 if at.gate is None else at.gate.to(out.dtype)[:, None]))


@register
class QuietHeads(Control):
    """Chosen heads say less: strength 1 is silence."""

    kind: Literal["quiet"] = "quiet"

    def plan(self, call):
        return Quiet(self.strength)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
    folder.mkdir(parents=True, exist_ok=True)
    pipe, recipe = load("tiny-sd3"), Recipe(prompts=("a fox, comic", "a house, sticker"), seed=3)
    silent = recipe.model_copy(update={"control": (QuietHeads(where={"blocks": "4"}),)})
    rows = [sheet_row(generate(pipe, recipe), "Plain"), sheet_row(generate(pipe, silent), "Block 4 is silent")]
    contact_sheet(rows).save(folder / "own-method.png")
