"""Does FreeCus keep a subject? Its colour, which the prompt leaves open, is read in the picture that follows.

python benchmarks/identity.py --model tiny-sd3 --artwork ~/.cache/attnctrl/artwork.npz --out docs/identity-sd3

A trial draws a subject in a colour (the reference, a true render with its mask) and asks for that subject in another
style, without the colour's word. Per method, by the judges:
  identity  share of pictures whose subject has the reference's colour
  subject   share of pictures whose subject is the asked one
  style     share of pictures in the asked style
"named" is plain with the colour's word in the prompt: what the model can do when it is told. Intervals are 95%
bootstrap intervals over trials, of the mean and of the paired difference to plain.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from study import Scores, report

from attnctrl import Control, NaiveSharing, Reference, StyleAligned, Where, load
from attnctrl.embedded import artwork
from attnctrl.embedded.cases import STYLE_CHOICES
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.judge import Judge
from attnctrl.embedded.scenes import RECOLORABLE, WIDER, article, held_out, render, sample
from attnctrl.embedded.styles import STYLES
from attnctrl.embedded.subjects import SubjectJudge
from attnctrl.pipelines.sheets import SheetRow, contact_sheet
from attnctrl.processors import FreeCus

METRICS = ("identity", "subject", "style")
SHOWN = 4


@dataclass(frozen=True)
class Trial:
    """A coloured subject as the reference shows it, and the style in which it is asked for."""

    subject: str
    color: str
    style: str
    picture: Image.Image
    mask: Image.Image


def trials(count: int, seed: int, cache: Path) -> list[Trial]:
    """Seeded trials; the reference is a flat icon, the asked style another one that shows colours."""
    rng, art = np.random.default_rng(seed), artwork.load(cache)
    subjects = [name for name in WIDER.subjects if name in RECOLORABLE]
    styles = [name for name in STYLE_CHOICES if STYLES[name].colors and name != "flat icon"]
    drawn = []
    while len(drawn) < count:
        subject, style, color = (str(rng.choice(names)) for names in (subjects, styles, list(COLORS)))
        if held_out(subject, style):
            continue
        world = replace(
            WIDER, subjects=(subject,), styles=("flat icon",), shapes=(((64, 64), 1.0),), pairs=0.0, backgrounds=0.0
        )
        scene = sample(rng, world) if not held_out(subject, "flat icon") else None
        if scene is None:
            continue
        shown = render(replace(scene, objects=(replace(scene.objects[0], color=color),)), art)
        mask = Image.fromarray((shown.masks[0] > 0.5).astype(np.uint8) * 255)
        drawn.append(Trial(subject, color, style, Image.fromarray(shown.image), mask.convert("RGB")))
    return drawn


def arms(trial: Trial) -> dict[str, tuple[str, tuple[Control, ...]]]:
    """Prompt and controls of every method."""
    prompt, caption = f"{article(trial.subject)}, {trial.style}", article(trial.subject)
    masked = Reference(picture=trial.picture, mask=trial.mask, caption=caption)
    whole = Reference(picture=trial.picture, caption=caption)
    noisy = Reference(picture=trial.picture, mask=trial.mask, caption=caption, noise="step")
    everywhere = Where(blocks="all")
    return {
        "plain": (prompt, ()),
        "named": (f"{article(trial.color)} {trial.subject}, {trial.style}", ()),
        "naive": (prompt, (NaiveSharing(reference=whole),)),
        "stylealigned": (prompt, (StyleAligned(reference=whole),)),
        "freecus": (prompt, (FreeCus(reference=masked),)),
        "freecus, every block": (prompt, (FreeCus(reference=masked, where=everywhere),)),
        "freecus, every block, 0.5": (prompt, (FreeCus(reference=masked, where=everywhere, strength=0.5),)),
        "freecus, late blocks": (prompt, (FreeCus(reference=masked, where=Where(blocks="late")),)),
        "freecus, no mask": (prompt, (FreeCus(reference=whole),)),
        "freecus, step's own noise": (prompt, (FreeCus(reference=noisy),)),
        "freecus, strength 0.3": (prompt, (FreeCus(reference=masked, strength=0.3),)),
    }


def draw(pipe: Any, given: list[Trial], seed: int) -> dict[str, list[Image.Image]]:
    """One picture a trial and method, the same noise for all methods."""
    pictures: dict[str, list[Image.Image]] = {}
    for i, trial in enumerate(given):
        for name, (prompt, control) in arms(trial).items():
            generator = torch.Generator().manual_seed(seed + i)
            pictures.setdefault(name, []).append(pipe(prompt, control=control, generator=generator).images[0])
        print(f"trial {i + 1} of {len(given)}", flush=True)
    return pictures


def judged(given: list[Trial], pictures: dict[str, list[Image.Image]]) -> Scores:
    """Scores [method][metric], an array over trials."""
    namer, judge = SubjectJudge.load(), Judge.load()
    subjects = [trial.subject for trial in given]
    scores = {}
    for name, drawn in pictures.items():
        images = np.stack([np.asarray(one) for one in drawn])
        seen = namer(images)
        right = {
            "identity": np.array(seen.color_of(subjects)) == [trial.color for trial in given],
            "subject": np.array(seen.subjects()) == subjects,
            "style": np.array(judge.named(images, WIDER.styles)) == [trial.style for trial in given],
        }
        scores[name] = {metric: values.astype(float) for metric, values in right.items()}
    return scores


def sheet(given: list[Trial], pictures: dict[str, list[Image.Image]]) -> Image.Image:
    """The first trials, a row each: the reference, then every method."""
    rows = []
    for i, trial in enumerate(given[:SHOWN]):
        shown = [trial.picture, *(drawn[i] for drawn in pictures.values())]
        title = f"{trial.color} {trial.subject} in {trial.style}"
        rows.append(SheetRow(title, shown, ["reference", *pictures], frozenset({0})))
    return contact_sheet(rows)


def main() -> None:
    """Run the study; write OUT.json and OUT.png and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-flux")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--artwork", type=Path, required=True, help="the artwork cache, for the references")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    given = trials(options.trials, options.seed, options.artwork.expanduser())
    pictures = draw(load(options.model, device="cpu"), given, options.seed)
    sheet(given, pictures).save(options.out.with_suffix(".png"))
    scores = judged(given, pictures)
    told = {"model": options.model, "trials": options.trials, "seed": options.seed}
    report(scores, told, options.out)


if __name__ == "__main__":
    main()
