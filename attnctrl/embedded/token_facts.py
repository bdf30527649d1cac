"""What each token of a caption stands for: the truth that the T5 encoder is taught, and tested on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import T5Tokenizer

from attnctrl.embedded import text
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.scenery import BACKGROUNDS
from attnctrl.embedded.scenes import NAMED_STYLES, RELATIONS, SUBJECT_NAMES, WHOLE, Scene, sample

PLACES = ("alone", "left", "right", "top", "bottom", "middle")
FACTS: dict[str, tuple[str, ...]] = {
    "subject": SUBJECT_NAMES,
    "color": ("none", *COLORS),
    "place": PLACES,
    "relation": ("none", *RELATIONS),
    "style": ("none", *NAMED_STYLES),
    "background": ("none", *BACKGROUNDS),
}
"""The first three are taught on the tokens of a noun phrase, the others on the caption's other tokens."""
_NOUN = ("subject", "color", "place")
_ENDS = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
WORLD = replace(WHOLE, pairs=0.7, threes=0.4, colored=0.5)
"""The captions: all subjects, most in a relation."""


def set_apart(first: str, second: str) -> bool:
    """Whether the two subjects never meet in the captions that teach (a fixed tenth of the ordered pairs)."""
    return hashlib.sha256(f"{first}>{second}".encode()).digest()[0] % 10 == 0


def kept_out(scene: Scene) -> bool:
    """Whether a scene has a pair that the encoder is tested on."""
    names = [thing.subject for thing in scene.objects]
    return any(set_apart(*pair) for pair in itertools.pairwise(names))


def scenes(count: int, seed: int, *, kept: bool = False) -> list[Scene]:
    """Seeded scenes with a caption: without the pairs kept out, or (`kept`) only such."""
    rng = np.random.default_rng(seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = sample(rng, WORLD)
        if scene.caption and kept_out(scene) == kept:
            found.append(scene)
    return found


def places(scene: Scene) -> list[str]:
    """Where each object of a scene stands."""
    if scene.relation is None:
        return ["alone"]
    first, last = _ENDS[scene.relation]
    return [first, *["middle"] * (len(scene.objects) - 2), last]


def phrases(scene: Scene) -> list[tuple[int, int]]:
    """Begin and end of each object's words in the caption, the color included, the article not."""
    found, begin = [], 0
    for thing in scene.objects:
        colored = f"{thing.color} {thing.subject}"
        told = scene.caption.startswith((f"a {colored}", f"an {colored}"), begin)
        words = colored if told else thing.subject
        begin = scene.caption.index(words, begin)
        found.append((begin, begin + len(words)))
        begin += len(words) + len(f" {scene.relation} ")
    return found


def encode(tokenizer: T5Tokenizer, drawn: Sequence[Scene]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """T5 ids [n, 24], the facts of each token [n, 24] (-100 where none is asked), and each object's last token [n, 3].

    The last tokens are -1 where a scene has fewer objects.
    """
    form = {"padding": "max_length", "max_length": text.TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
    said = tokenizer([scene.caption for scene in drawn], return_offsets_mapping=True, **form)
    labels = {name: np.full(said.input_ids.shape, -100) for name in FACTS}
    last = np.full((len(drawn), 3), -1)
    offsets, ids = said.offset_mapping.numpy(), said.input_ids.numpy()
    for row, scene in enumerate(drawn):
        begins, ends = offsets[row].T
        other = (ids[row] != tokenizer.pad_token_id) & (begins < ends)
        stands = zip(scene.objects, phrases(scene), places(scene), strict=True)
        for number, (thing, (begin, end), place) in enumerate(stands):
            inside = (begins < end) & (ends > begin) & (begins < ends)
            other &= ~inside
            color = thing.color if f"{thing.color} " in scene.caption[begin:end] else "none"
            for name, value in zip(_NOUN, (thing.subject, color, place), strict=True):
                labels[name][row, inside] = FACTS[name].index(str(value))
            if inside.any():
                last[row, number] = inside.nonzero()[0][-1]
        where = BACKGROUNDS.get(scene.background or "", "")
        told = {
            "relation": scene.relation or "none",
            "style": scene.style if scene.caption.endswith(f", {scene.style}") else "none",
            "background": str(scene.background) if where and f" on {where}" in scene.caption else "none",
        }
        for name, value in told.items():
            labels[name][row, other] = FACTS[name].index(value)
    return said.input_ids, {name: torch.from_numpy(rows) for name, rows in labels.items()}, torch.from_numpy(last)
