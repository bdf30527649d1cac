"""Write the sets that are shipped: `embedded`, for tiny-flux and tiny-sd3, and `published`, the papers' form of prompt.

python benchmarks/make_sets.py --artwork ~/.cache/attnctrl/artwork.npz

`embedded`: 90 captioned sets, nine of each style that both models learnt by name, and 10 whose style is never named: a
true render of the world leads them. Subjects differ within a set, and no (subject, style) pair was held out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from attnctrl.embedded import artwork
from attnctrl.embedded.scenes import FIRST, WIDER, World, article, held_out, render, sample
from attnctrl.embedded.styles import STYLES
from attnctrl.evals.runs.config import dumped
from attnctrl.evals.runs.sets import SHIPPED, StyleSet

SIZE, CAPTIONED, PICTURED = 4, 9, 5
# fmt: off
OBJECTS = (
    "a bicycle", "a lighthouse", "a teapot", "an owl", "a cactus in a pot", "a violin", "a steam train",
    "a pair of boots", "a snail", "a windmill", "a pocket watch", "a tent",
    "an umbrella", "a whale", "a typewriter", "a loaf of bread",
    "a castle", "a beetle", "a rowing boat", "a street lamp", "a sunflower", "a radio", "a squirrel", "a bridge",
    "a suitcase", "a pear", "a rocking chair", "a hedgehog", "a telescope", "a kite",
)
MANNERS = (
    "in woodblock print style", "in paper quilling style", "in low poly style", "in charcoal drawing style",
    "in stained glass style", "in embroidery style", "in isometric illustration style", "in ink wash painting style",
    "in claymation style", "in art deco poster style", "in pixel art style", "in chalk pastel style",
    "in porcelain figurine style", "in vintage postcard style", "in blueprint style", "in felt craft style",
    "in comic book style", "in copper engraving style", "in watercolor style", "in origami style",
    "in neon sign style", "in mosaic style", "in children's crayon drawing style", "in flat vector icon style",
    "in ice sculpture style",
)
# fmt: on


def embedded(cache: Path) -> list[StyleSet]:
    """The sets of the embedded world."""
    rng, art = np.random.default_rng(0), artwork.load(cache)
    found = []
    for style in [name for name in WIDER.styles if STYLES[name].named]:
        for number in range(CAPTIONED):
            names = _subjects(rng, style, SIZE)
            subjects = tuple(article(name) for name in names)
            prompts = tuple(f"{subject}, {style}" for subject in subjects)
            found.append(StyleSet(id=f"{_slug(style)}-{number + 1}", prompts=prompts, subjects=subjects, style=style))
    for style in [name for name in WIDER.styles if not STYLES[name].named]:
        for number in range(PICTURED):
            led, *names = _subjects(rng, style, SIZE + 1)
            world = World((led,), (style,), FIRST.artworks, (((64, 64), 1.0),), 0.0, 0.0)
            picture = Image.fromarray(render(sample(rng, world), art).image)
            subjects = tuple(article(name) for name in names)
            found.append(
                StyleSet(
                    id=f"{_slug(style)}-by-picture-{number + 1}", prompts=subjects, subjects=subjects, style=style,
                    reference=picture, caption=article(led),
                )
            )  # fmt: skip
    return found


def published() -> list[StyleSet]:
    """100 sets "{four objects} in ... style": the papers' form, with words of our own."""
    rng, found = np.random.default_rng(1), []
    for manner in MANNERS:
        name = manner.removeprefix("in ").removesuffix(" style")
        for number in range(4):
            subjects = tuple(str(one) for one in rng.choice(OBJECTS, SIZE, replace=False))
            prompts = tuple(f"{subject} {manner}" for subject in subjects)
            found.append(StyleSet(id=f"{_slug(name)}-{number + 1}", prompts=prompts, subjects=subjects, style=name))
    return found


def _subjects(rng: np.random.Generator, style: str, count: int) -> list[str]:
    known = [subject for subject in WIDER.subjects if not held_out(subject, style)]
    return [str(one) for one in rng.choice(known, count, replace=False)]


def _slug(text: str) -> str:
    return "".join(letter for letter in text.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


def main() -> None:
    """Write both files into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artwork", type=Path, required=True)
    sets = {"embedded": embedded(parser.parse_args().artwork), "published": published()}
    SHIPPED.mkdir(exist_ok=True)
    for name, found in sets.items():
        (SHIPPED / f"{name}.jsonl").write_text(dumped(found), encoding="utf-8")
        print(name, len(found))


if __name__ == "__main__":
    main()
