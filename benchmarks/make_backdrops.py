"""Fit the backdrop judge and say how often it is right on true renders.

python benchmarks/make_backdrops.py --artwork ~/.cache/attnctrl/artwork.npz
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from attnctrl.embedded import artwork
from attnctrl.embedded.backdrops import Backdrops
from attnctrl.embedded.canvas import Array
from attnctrl.embedded.intervals import share
from attnctrl.embedded.scenes import PAIRED, render, sample

STYLES = PAIRED.styles
PICTURES = 60
"""True renders a style."""


def right(judge: Backdrops, style: str, art: dict[str, Array]) -> list[bool]:
    """Whether each of so many true renders is read right outside of its objects."""
    rng = np.random.default_rng(1)
    world = replace(PAIRED, styles=(style,), shapes=(((64, 64), 1.0),), backgrounds=1.0)
    found = []
    for _ in range(PICTURES):
        scene = sample(rng, world)
        drawn = render(scene, art)
        objects = cv2.dilate((drawn.masks.max(0) > 0.3).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        found.append(judge.named(drawn.image, style, objects) == scene.background)
    return found


def main() -> None:
    """Fit, write the weights into the package, and print a line a style."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artwork", type=Path, required=True)
    art = artwork.load(parser.parse_args().artwork)
    judge = Backdrops.fit(STYLES)
    judge.save()
    every = {style: right(judge, style, art) for style in STYLES}
    for name, found in {**every, "all": [one for row in every.values() for one in row]}.items():
        print(f"{name}: {' '.join(f'{value:.3f}' for value in share(found))} of {len(found)}", flush=True)


if __name__ == "__main__":
    main()
