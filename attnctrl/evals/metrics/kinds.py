"""Metrics by name, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from math import isfinite
from types import MappingProxyType

from ...errors import ControlError
from ..objectives import KINDS as OBJECTIVES
from ..objectives import Models, objective
from .metric import DrawnSet, Kind, Metric

KINDS = MappingProxyType(
    {
        "style-agreement": Kind(
            "judged", "", "1 - mean distance of style parameters to the leader's, by the embedded judge"
        ),
        "style-as-asked": Kind("judged", "", "share of followers whose style is named as asked, by the embedded judge"),
        "subject-as-asked": Kind(
            "judged", "", "share of followers whose subject is named as asked, by the embedded judge"
        ),
        "leakage": Kind("judged", "", "share of followers taken for the leader's subject", higher_is_better=False),
        "lite-style": Kind("lite", "", "pairwise likeness of EfficientNet-lite0's style statistics, 0 to 1"),
        "lite-diversity": Kind("lite", "", "1 - pairwise cosine of EfficientNet-lite0's deep features; 0 for copies"),
        "clip-t": Kind("networks", "[FOLDER]", "CLIP cosine of pictures and their subjects' text"),
        "clip-i": Kind("networks", "[FOLDER]", "pairwise CLIP cosine of pictures"),
        "dino": Kind("networks", "[FOLDER]", "pairwise DINO cosine of pictures"),
        "csd": Kind("networks", "[FILE]", "pairwise cosine of Contrastive Style Descriptors"),
        "dreamsim": Kind("networks", "[FOLDER]", "1 - pairwise DreamSim distance"),
    }
)
FRECHET = "frechet-lite"
"""Measured of a whole method, by the report: distance of its pictures from plain's in EfficientNet-lite0's features."""
EMBEDDED = ("style-agreement", "style-as-asked", "subject-as-asked", "leakage", "lite-style", "lite-diversity", FRECHET)
"""What is measured of the embedded models if nothing is asked for."""
GENERAL = ("lite-style", "lite-diversity", FRECHET)
"""The same of other models; needs no weights of the user's."""


@dataclass(frozen=True)
class Measured:
    """A `Metric` made of a function; its value checked."""

    name: str
    value: Callable[[DrawnSet], float | None]

    def __call__(self, drawn: DrawnSet) -> float | None:
        """ControlError for what is no finite number."""
        value = self.value(drawn)
        if value is not None and not isfinite(value):
            raise ControlError(f"{self.name} gave {value} for the set that begins with {drawn.prompts[0]!r}")
        return value


def metric(text: str, models: Models) -> Metric:
    """The metric that a text names: one of KINDS (`NAME` or `NAME:ARGUMENT`), or any objective, its mean over a set.

    Raises ControlError for a name, an argument or weights that are not there.
    """
    name, colon, argument = (part.strip() for part in text.partition(":"))
    if name in KINDS:
        kind = KINDS[name]
        if colon and not kind.argument:
            raise ControlError(f"{name} takes nothing after the colon; write {name}, not {text!r}")
        value = import_module(f"attnctrl.evals.metrics.{kind.module}").make(name, argument, models)
        return Measured(text, value)
    if name not in OBJECTIVES and ":" not in text:
        near = get_close_matches(name, (*KINDS, *OBJECTIVES, FRECHET), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join((*KINDS, FRECHET))}, or an objective"
        raise ControlError(f"no metric is called {name!r}; {hint}")
    one = objective(text, models=models)

    def value_of(drawn: DrawnSet) -> float:
        values = one(drawn.pictures, drawn.prompts)
        return sum(values) / len(values)

    return Measured(text, value_of)


def says(text: str) -> str:
    """What a metric's number is; empty for a user's own."""
    name = text.partition(":")[0]
    if name == FRECHET:
        return "Frechet distance from the baseline's pictures in EfficientNet-lite0's features; not FID"
    return KINDS[name].says if name in KINDS else OBJECTIVES[name].says if name in OBJECTIVES else ""


def higher_is_better(text: str) -> bool:
    """Whether more of a metric is better."""
    name = text.partition(":")[0]
    return name != FRECHET and (name not in KINDS or KINDS[name].higher_is_better)


def metrics(texts: Sequence[str], device: str | None = None) -> list[Metric]:
    """Every metric of a set that is named, with shared networks; FRECHET, a whole method's, is left to the report."""
    models = Models(device)
    if FRECHET in texts:
        metric("lite-style", models)  # so that a missing extra is said now
    return [metric(text, models) for text in texts if text != FRECHET]
