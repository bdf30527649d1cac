"""What a metric is: a number, or none, for one finished set of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class DrawnSet:
    """A finished set: its pictures in the order of its prompts, RGB, and what was asked of them.

    The first picture leads the others, or the `reference` picture leads all. `subjects` and `style` are None where the
    set does not name them.
    """

    prompts: Sequence[str]
    pictures: Sequence[Image.Image]
    subjects: Sequence[str] | None = None
    style: str | None = None
    reference: Image.Image | None = None
    caption: str = ""

    @property
    def leader(self) -> Image.Image:
        """The picture whose style the others are to take."""
        return self.pictures[0] if self.reference is None else self.reference

    @property
    def first(self) -> int:
        """Number of the first follower."""
        return 1 if self.reference is None else 0

    @property
    def followers(self) -> Sequence[Image.Image]:
        """The pictures that follow the leader."""
        return self.pictures[self.first :]

    @property
    def texts(self) -> Sequence[str]:
        """What text alignment is measured against: each picture's subject where it is named, else its prompt."""
        return self.prompts if self.subjects is None else self.subjects

    @cached_property
    def arrays(self) -> np.ndarray:
        """The pictures as uint8 [n, H, W, 3]."""
        return np.stack([np.asarray(picture) for picture in self.pictures])


class Metric(Protocol):
    """One number a set (a DrawnSet) or an edit (a DrawnEdit), or None where it cannot be measured so; `name` is the
    text that made it."""

    @property
    def name(self) -> str: ...
    def __call__(self, drawn: Any) -> float | None: ...


@dataclass(frozen=True)
class Kind:
    """A family of metrics: its module, what stands after the colon ("[...]": or nothing), whether more is better, and
    whether it is of a "set" or an "edit"."""

    module: str
    argument: str
    says: str
    higher_is_better: bool = True
    of: str = "set"


def mean_of_pairs(features: np.ndarray) -> float:
    """Mean over all pairs of the products of unit rows [n, width]; n at least 2."""
    gram = features @ features.T
    n = len(gram)
    return float((gram.sum() - np.trace(gram)) / (n * (n - 1)))
