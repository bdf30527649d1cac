"""A set in one style: the first prompt leads, gently and as published, on a pipeline of attnctrl's and on any other.

python examples/style_set.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from attnctrl import AlignedStyle, Recipe, attached, generate, load
from attnctrl.pipelines.generate import sheet_row
from attnctrl.pipelines.sheets import SheetRow, contact_sheet

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
folder.mkdir(parents=True, exist_ok=True)
prompts = ("a fox, comic", "a key, comic", "a house, comic", "a strawberry, comic")

pipe = load("tiny-sd3")  # or a hub id such as black-forest-labs/FLUX.1-dev
plain = Recipe(prompts=prompts, seed=3)
gentle = Recipe(prompts=prompts, seed=3, control=({"kind": "aligned-gentle"},))
rows = [sheet_row(generate(pipe, plain), "Plain"), sheet_row(generate(pipe, gentle), "AlignedGen, gentle")]

# The same on a pipeline of diffusers, for the length of a block.
stock = StableDiffusion3Pipeline(**pipe.components)
seeds = [torch.Generator().manual_seed(3 + i) for i in range(len(prompts))]
with attached(stock, AlignedStyle(strength=0.5)) as session:
    print(session)
    images = stock(
        list(prompts), height=64, width=64, guidance_scale=3.0, max_sequence_length=24, generator=seeds
    ).images
rows.append(SheetRow("AlignedGen at half strength, in diffusers", images, prompts, frozenset({0})))

contact_sheet(rows).save(folder / "style-set.png")
