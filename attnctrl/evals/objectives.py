"""Objectives: what a search over heads maximises; a short text names one, in Python and on the command line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from math import fsum, isfinite
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from PIL import Image

from ..errors import ControlError

Score = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]
"""Pictures and their prompts to a number each; higher is better."""
T = TypeVar("T")
_WEIGHTED = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))\s*\*\s*(.+)", re.DOTALL)


class Objective(Protocol):
    """One number a picture, higher is better; `name` is the text that made it."""

    @property
    def name(self) -> str: ...
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]: ...


class Kind(NamedTuple):
    """A family of objectives: the module that makes it, what stands after the colon ("[...]" may be left out)."""

    module: str
    argument: str
    says: str


KINDS = MappingProxyType(
    {
        "color": Kind("pixels", "COLOR", "share of the picture near a colour's hue, by chroma; 0 to 1"),
        "contrast": Kind("pixels", "", "standard deviation of OKLab lightness; 0 to 0.5"),
        "sharpness": Kind("pixels", "", "variance of the luma's Laplacian at 512 px or less"),
        "saturation": Kind("pixels", "", "mean OKLab chroma; 0 to 0.32"),
        "brightness": Kind("pixels", "", "mean OKLab lightness; 0 to 1"),
        "darkness": Kind("pixels", "", "1 - brightness"),
        "colorfulness": Kind("pixels", "", "Hasler and Suesstrunk's; 0 (gray) to 109 (extremely colourful) and above"),
        "style": Kind("judged", "STYLE", "log-probability of an embedded style"),
        "subject": Kind("judged", "", "log-share of the prompt's subject among what the embedded judge sees"),
        "quality": Kind("judged", "", "subject plus log-probability of the prompt's style; embedded"),
        "like": Kind("judged", "PICTURE", "likeness in style to a picture file; 0 to 1"),
        "clip": Kind("scorers", "[FOLDER]", "100 * CLIP cosine of picture and prompt"),
        "text": Kind("scorers", "TEXT", "100 * CLIP cosine of picture and this text"),
        "pickscore": Kind("scorers", "[FOLDER]", "PickScore of picture and prompt, about 17 to 24"),
        "aesthetic": Kind("scorers", "[FILE]", "LAION's aesthetic score, about 3 to 8"),
        "sum": Kind("", "PART+PART", "weighted sum: sum:0.7*color:blue+0.3*sharpness; (a part) may hold a +"),
        "harmonic": Kind("", "PART+PART", "harmonic mean of positive parts; the least part where one is not positive"),
    }
)


class Models:
    """What the parts of one objective share: the device, and each judge or network, loaded once."""

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._kept: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def device(self) -> str:
        """The asked device, or the best one here."""
        if self._device:
            return self._device
        from ..pipelines.loading import default_device

        return str(default_device())

    def get(self, load: Callable[..., T], *arguments: Any) -> T:
        """What `load(*arguments)` gave at its first call."""
        key = (load, *arguments)
        if key not in self._kept:
            self._kept[key] = load(*arguments)
        found: T = self._kept[key]
        return found


@dataclass(frozen=True)
class Measure:
    """An `Objective`: `score` with its input and output checked; ControlError where they do not fit."""

    name: str
    score: Score

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """One finite number a picture."""
        if len(images) != len(prompts):
            raise ControlError(f"{self.name}: {len(images)} pictures came with {len(prompts)} prompts; give one each")
        if not images:
            return []
        values = self.score([image.convert("RGB") for image in images], list(prompts))
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            raise ControlError(f"{self.name} did not give numbers, but {str(values)[:80]!r}") from None
        if len(numbers) != len(images) or not all(map(isfinite, numbers)):
            raise ControlError(f"{self.name} must give a finite number a picture, not {str(numbers)[:80]}")
        return numbers


def objective(text: str, device: str | None = None, models: Models | None = None) -> Objective:
    """The objective that a text names, its weights loaded: one of KINDS (`NAME` or `NAME:ARGUMENT`), or
    `module.path:function`, a user's `Score`.

    `device`: for networks, None picks the best here; `models`: of other objectives, to share theirs (and their device).

    Raises ControlError for a name, an argument or weights that are not there.
    """
    return _measure(text, models or Models(device))


def check_objective(text: str) -> None:
    """Raise ControlError for a text that names no objective; loads no weights."""
    name, colon, argument = (part.strip() for part in text.strip().partition(":"))
    if name not in KINDS:
        _users(name, argument)
        return
    _check_argument(name, colon, argument)
    if name in ("sum", "harmonic"):
        for part in parts_of(argument):
            check_objective(weight_of(part)[1])


def _measure(text: str, models: Models) -> Measure:
    text = text.strip()
    name, colon, argument = (part.strip() for part in text.partition(":"))
    if name not in KINDS:
        return Measure(text, _users(name, argument))
    _check_argument(name, colon, argument)
    if name in ("sum", "harmonic"):
        return Measure(text, _combined(name, argument, models))
    score: Score = import_module(f"attnctrl.evals.{KINDS[name].module}").make(name, argument, models)
    return Measure(text, score)


def _check_argument(name: str, colon: str, argument: str) -> None:
    kind = KINDS[name]
    if kind.argument and not kind.argument.startswith("[") and not argument:
        raise ControlError(f"{name} needs {kind.argument}: write {name}:{kind.argument}")
    if colon and not kind.argument:
        raise ControlError(f"{name} takes nothing after the colon; write {name}, not {f'{name}:{argument}'!r}")


def _combined(name: str, argument: str, models: Models) -> Score:
    weighted = [weight_of(part) for part in parts_of(argument)]
    if name == "harmonic" and any(weight != 1 for weight, _ in weighted):
        raise ControlError(f"harmonic takes no weights: {argument!r}")
    parts = [(weight, _measure(text, models)) for weight, text in weighted]

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        rows = zip(*([weight * value for value in part(images, prompts)] for weight, part in parts), strict=True)
        return [fsum(row) if name == "sum" else _harmonic(row) for row in rows]

    return score


def _harmonic(values: Sequence[float]) -> float:
    least = min(values)
    return len(values) / fsum(1 / value for value in values) if least > 0 else least


def parts_of(text: str) -> list[str]:
    """The text cut at each + outside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            break
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth != 0:
        raise ControlError(f"a parenthesis has no partner in {text!r}")
    if not all(part.strip() for part in parts):
        raise ControlError(f"a part of {text!r} is empty; write for example 0.7*color:blue+0.3*sharpness")
    return [part.strip() for part in parts]


def weight_of(part: str) -> tuple[float, str]:
    match = _WEIGHTED.fullmatch(part)
    weight, text = (float(match[1]), match[2].strip()) if match else (1.0, part)
    return weight, text[1:-1] if text.startswith("(") and text.endswith(")") else text


def _users(module: str, name: str) -> Score:
    """A user's function; ControlError where there is none."""
    if not (name.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise ControlError(_unknown(module))
    if module.split(".")[0] in sys.stdlib_module_names:
        raise ControlError(f"{module}:{name} is of Python's own library, and no objective; name a function of yours")
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as fault:
        if fault.name == module and "." not in module:
            raise ControlError(_unknown(module)) from None
        raise ControlError(f"no module {fault.name} for {module}:{name}; put its folder on PYTHONPATH") from None
    except Exception as fault:
        raise ControlError(f"{module} cannot be imported: {type(fault).__name__}: {fault}") from fault
    if not callable(found):
        raise ControlError(f"{module} has no function {name}")
    try:
        inspect.signature(found).bind([], [])
    except (TypeError, ValueError):
        raise ControlError(f"{module}:{name} is no objective; write a function of (images, prompts)") from None
    score: Score = found
    return score


def _unknown(name: str) -> str:
    near = get_close_matches(name.lower(), KINDS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(KINDS)} and module.path:function"
    return f"no objective is called {name!r}; {hint}"
