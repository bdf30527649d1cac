"""Metrics by name, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from math import isfinite
from types import MappingProxyType
from typing import Any

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
        "edit-success": Kind("edits", "", "share of edits whose change the embedded judges read as asked", of="edit"),
        "rest-as-asked": Kind(
            "edits", "", "share of edits of which the embedded judges still read all else as asked", of="edit"
        ),
        "background-psnr": Kind(
            "edits", "", "PSNR of edit and source where nothing should change, dB; 60 where they are equal", of="edit"
        ),
        "background-ssim": Kind("edits", "", "SSIM of edit and source where nothing should change", of="edit"),
        "canny-ssim": Kind(
            "edits", "", "SSIM of the Canny edges of edit and source: structure that is kept", of="edit"
        ),
        "untaken": Kind("edits", "", "share of edits that are not to be seen: they did not happen", False, "edit"),
        "region-iou": Kind("edits", "", "overlap of the words' region with what the judge outlines", of="edit"),
        "source-as-asked": Kind(
            "edits", "", "share of sources that the embedded judges read as asked; success is of these alone", of="edit"
        ),
    }
)
FRECHET = "frechet-lite"
"""Measured of a whole method, by the report: distance of its pictures from plain's in EfficientNet-lite0's features."""
EMBEDDED = ("style-agreement", "style-as-asked", "subject-as-asked", "leakage", "lite-style", "lite-diversity", FRECHET)
"""What is measured of the embedded models if nothing is asked for."""
GENERAL = ("lite-style", "lite-diversity", FRECHET)
"""The same of other models; needs no weights of the user's."""
EDITS = tuple(name for name, kind in KINDS.items() if kind.of == "edit")
"""What is measured of edits if nothing is asked for."""
OF_EITHER = "clip-t"
"""A set's metric that edits have too: of the edit and its prompt."""


@dataclass(frozen=True)
class Measured:
    """A `Metric` made of a function; its value checked."""

    name: str
    value: Callable[[Any], float | None]
    of: str = "set"

    def __call__(self, drawn: Any) -> float | None:
        """ControlError for what is no finite number."""
        value = self.value(drawn)
        if value is not None and not isfinite(value):
            raise ControlError(f"{self.name} gave {value} for the {self.of} that begins with {drawn.prompts[0]!r}")
        return value


def metric(text: str, models: Models, of: str = "set") -> Metric:
    """The metric that a text names: one of KINDS (`NAME` or `NAME:ARGUMENT`), or any objective, its mean over a set.

    of: "set" or "edit", what is measured. Raises ControlError for a name, an argument or weights that are not there,
    and for a metric of the other.
    """
    if of == "edit":
        return _of_edits(text, models)
    name, colon, argument = (part.strip() for part in text.partition(":"))
    if name in KINDS:
        kind = KINDS[name]
        if kind.of != "set":
            raise ControlError(f"{name} is measured of edits: attnctrl eval edit")
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


def _of_edits(text: str, models: Models) -> Metric:
    """A metric of edits: one of EDITS, or one of pictures and their prompts."""
    name, colon, _ = (part.strip() for part in text.partition(":"))
    if name in EDITS:
        if colon:
            raise ControlError(f"{name} takes nothing after the colon; write {name}, not {text!r}")
        return Measured(
            text, import_module(f"attnctrl.evals.metrics.{KINDS[name].module}").make(name, "", models), "edit"
        )
    if (name in KINDS or name == FRECHET) and name != OF_EITHER:
        raise ControlError(f"{name} is measured of sets; of edits are {', '.join(EDITS)}, {OF_EITHER} and objectives")
    if name not in (*OBJECTIVES, OF_EITHER) and ":" not in text:
        near = get_close_matches(name, (*EDITS, *OBJECTIVES), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(EDITS)}, or an objective"
        raise ControlError(f"no metric is called {name!r}; {hint}")
    one = metric(text, models)
    return Measured(text, lambda drawn: one(drawn.as_set), "edit")


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


def metrics(texts: Sequence[str], device: str | None = None, of: str = "set") -> list[Metric]:
    """Every metric of a set, or of an edit, that is named, with shared networks; FRECHET, a whole method's, is left to
    the report."""
    models = Models(device)
    if of == "edit":
        return [metric(text, models, of) for text in texts]
    if FRECHET in texts:
        metric("lite-style", models)  # so that a missing extra is said now
    return [metric(text, models) for text in texts if text != FRECHET]
