"""Where the picture attends to its words, and what its heads do; the picture itself stays as it was.

python examples/words.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from attnctrl import Where, load, observe
from attnctrl.pipelines.sheets import SheetRow, contact_sheet

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "attnctrl-out/examples")
folder.mkdir(parents=True, exist_ok=True)

words = ["strawberry", "red", "green"]
seen = observe(
    load("tiny-sd3"), "a red strawberry on a green ground, comic", words,
    where=Where(blocks="middle,last"), generator=torch.Generator().manual_seed(3),
)  # fmt: skip
captions = ["the picture", *(f"{word}: up to {seen.map(word).max():.3f}" for word in words)]
rows = [
    SheetRow("Attention to words, mean over blocks, heads and steps", [seen.image, *map(seen.overlay, words)], captions)
]
contact_sheet(rows).save(folder / "words.png")

entropy = seen.statistics["entropy"].mean(0)
for label, heads in zip(seen.blocks, entropy, strict=True):
    print(label, *(f"H{i} {value:.2f}" for i, value in enumerate(heads)))
