"""Arguments as users give them in Python: of the right kind and within what a picture bears, or one sentence."""

from __future__ import annotations

from math import isfinite
from operator import index
from typing import Any

from .errors import ControlError

MOST_STEPS, MOST_GUIDANCE, MOST_PIXELS = 1000, 100.0, 16384
"""Beyond these no model was trained, and a run would take days."""


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise ControlError for what is no whole number from `least` to `most`."""
    span = f"from {least} to {most}" if most is not None else f"from {least} on"
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise ControlError(f"{name} is {shown(value)}; give a whole number {span}")


def number(name: str, value: Any, most: float) -> None:
    """Raise ControlError for what is no number from 0 to `most`."""
    try:
        found = float("nan") if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not (isfinite(found) and 0 <= found <= most):
        raise ControlError(f"{name} is {shown(value)}; give a number from 0 to {most:g}, such as 3.5")


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A text, or a list of them, as texts; ControlError for none, for other things and for what is no UTF-8."""
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, (list, tuple)) or not several:
        raise ControlError(f"{name} is {shown(value)}; give a text, or a list of one for each picture")
    for one in several:
        if not isinstance(one, str):
            raise ControlError(f"{name} holds {shown(one)}; give texts")
        if any("\ud800" <= letter <= "\udfff" for letter in one):
            raise ControlError(f"{name} holds bytes that are no UTF-8 text; type it anew")
    return tuple(several)


def shown(value: Any) -> str:
    """A value in a sentence: itself if it is short, else what it is."""
    plain = isinstance(value, (int, float, str, bytes, type(None)))
    if isinstance(value, (list, tuple, dict)) and not value:
        return "empty"
    return repr(value)[:60] if plain else f"a {type(value).__name__}"
