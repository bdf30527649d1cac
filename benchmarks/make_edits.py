"""Write the shipped edits: 210 of the embedded world, thirty of each kind, with their truth.

python benchmarks/make_edits.py

Only words that the models were shown (scenes.PAIRED), and no (subject, style) pair that was held out. Half of the edits
of an object or a color are in pairs. An added thing stands in the free third of a panorama, whose box is its region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attnctrl.embedded.cases import STYLE_CHOICES
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.scenery import BACKGROUNDS
from attnctrl.embedded.scenes import PAIRED, RECOLORABLE, RELATIONS, article, held_out
from attnctrl.embedded.styles import STYLES
from attnctrl.evals.edits.reading import SHIPPED
from attnctrl.evals.edits.sets import EditCase, Kind, Shown
from attnctrl.evals.runs.config import dumped
from attnctrl.region import Region

EACH = 30
WHOLE = Region(box=(0, 0, 1, 1))
PAINTED = tuple(name for name in STYLE_CHOICES if STYLES[name].colors)
SCENIC = tuple(name for name in PAINTED if name not in ("neon sign", "blueprint"))
"""Styles in which a backdrop is plain to see."""
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FREE = {"left of": (2 / 3, 0, 1, 1), "right of": (0, 0, 1 / 3, 1), "above": (0, 2 / 3, 1, 1), "below": (0, 0, 1, 1 / 3)}
"""Where there is room for what the thing in the middle is to stand left of, right of, above or below."""


@dataclass(frozen=True)
class Edit:
    """An edit before it has a number."""

    before: Shown
    after: Shown
    region: Region | None
    size: tuple[int, int] | None = None


def prompt_of(shown: Shown) -> str:
    """As the world's captions say it."""
    colors = shown.colors or (None,) * len(shown.subjects)
    nouns = [f"{color} {name}" if color else name for name, color in zip(shown.subjects, colors, strict=True)]
    text = f" {shown.relation} ".join(article(noun) for noun in nouns)
    if shown.background:
        text += f" on {BACKGROUNDS[shown.background]}"
    return f"{text}, {shown.style}"


def known(style: str, among: Sequence[str] = PAIRED.subjects) -> list[str]:
    """Subjects that were shown in a style."""
    return [name for name in among if not held_out(name, style)]


def some(rng: np.random.Generator, among: Sequence[str], count: int = 1) -> list[str]:
    """So many different ones."""
    return [str(one) for one in rng.choice(list(among), count, replace=False)]


def subject_edit(rng: np.random.Generator, number: int) -> Edit:
    """Another subject in the place of one; every second time in a pair."""
    style = STYLE_CHOICES[number % len(STYLE_CHOICES)]
    old, new, other = some(rng, known(style), 3)
    if number % 2 == 0:
        return Edit(Shown(subjects=(old,), style=style), Shown(subjects=(new,), style=style), Region(words=old))
    relation = RELATIONS[number // 2 % 4]
    before = Shown(subjects=(old, other), relation=relation, style=style)
    return Edit(before, before.model_copy(update={"subjects": (new, other)}), Region(words=old))


def color_edit(rng: np.random.Generator, number: int) -> Edit:
    """Another color of one; every second time in a pair whose other thing has one as well."""
    style = PAINTED[number % len(PAINTED)]
    old, new, others = some(rng, tuple(COLORS), 3)
    name, other = some(rng, known(style, sorted(RECOLORABLE & set(PAIRED.subjects))), 2)
    if number % 2 == 0:
        before = Shown(subjects=(name,), colors=(old,), style=style)
        return Edit(before, before.model_copy(update={"colors": (new,)}), Region(words=f"{old} {name}"))
    before = Shown(subjects=(name, other), colors=(old, others), relation=RELATIONS[number // 2 % 4], style=style)
    return Edit(before, before.model_copy(update={"colors": (new, others)}), Region(words=f"{old} {name}"))


def style_edit(rng: np.random.Generator, number: int) -> Edit:
    """The same thing in another style; everywhere."""
    old = STYLE_CHOICES[number % len(STYLE_CHOICES)]
    (new,) = some(rng, [name for name in STYLE_CHOICES if name != old])
    (name,) = some(rng, [one for one in known(old) if not held_out(one, new)])
    return Edit(Shown(subjects=(name,), style=old), Shown(subjects=(name,), style=new), None)


def background_edit(rng: np.random.Generator, number: int) -> Edit:
    """Another backdrop behind a thing; the region is all but the thing."""
    style = SCENIC[number % len(SCENIC)]
    (name,), (old, new) = some(rng, known(style)), some(rng, tuple(BACKGROUNDS), 2)
    before = Shown(subjects=(name,), background=old, style=style)
    return Edit(before, before.model_copy(update={"background": new}), WHOLE - Region(words=name))


def addition(rng: np.random.Generator, number: int) -> Edit:
    """A thing beside the one in a panorama."""
    style, relation = STYLE_CHOICES[number % len(STYLE_CHOICES)], RELATIONS[number % 4]
    name, new = some(rng, known(style), 2)
    after = Shown(subjects=(name, new), relation=relation, style=style)
    size = (128, 32) if relation in RELATIONS[:2] else (32, 128)
    return Edit(Shown(subjects=(name,), style=style), after, Region(box=FREE[relation]), size)


def removal(rng: np.random.Generator, number: int) -> Edit:
    """One of a pair goes."""
    style = STYLE_CHOICES[number % len(STYLE_CHOICES)]
    name, gone = some(rng, known(style), 2)
    before = Shown(subjects=(name, gone), relation=RELATIONS[number % 4], style=style)
    return Edit(before, Shown(subjects=(name,), style=style), Region(words=gone))


def move(rng: np.random.Generator, number: int) -> Edit:
    """A pair changes places; the region is both."""
    style, relation = STYLE_CHOICES[number % len(STYLE_CHOICES)], RELATIONS[number % 4]
    names = some(rng, known(style), 2)
    before = Shown(subjects=tuple(names), relation=relation, style=style)
    after = before.model_copy(update={"relation": OPPOSITE[relation]})
    return Edit(before, after, Region(words=names[0]) | Region(words=names[1]))


MAKERS: dict[Kind, Callable[[np.random.Generator, int], Edit]] = {
    "change object": subject_edit,
    "change color": color_edit,
    "change style": style_edit,
    "change background": background_edit,
    "add": addition,
    "remove": removal,
    "move": move,
}


def edits(each: int = EACH) -> list[EditCase]:
    """So many of each kind."""
    found = []
    for place, (kind, make) in enumerate(MAKERS.items()):
        rng = np.random.default_rng(place)
        for number in range(each):
            one = make(rng, number)
            width, height = one.size or (None, None)
            found.append(
                EditCase(
                    id=f"{kind.split()[-1]}-{number + 1}", kind=kind, source=prompt_of(one.before),
                    target=prompt_of(one.after), region=one.region, seed=int(rng.integers(2**31)), width=width,
                    height=height, before=one.before, after=one.after,
                )
            )  # fmt: skip
    return found


def main() -> None:
    """Write the file into the package."""
    found = edits()
    SHIPPED.write_text(dumped(found), encoding="utf-8")
    print(SHIPPED.name, len(found))


if __name__ == "__main__":
    main()
