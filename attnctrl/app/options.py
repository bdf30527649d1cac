"""What the command line's words mean: sizes, styles, devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..control import Control
from ..errors import ControlError
from ..reference import Reference
from ..registry import control_class, control_of, controls, presets

PLAIN = "plain"
DTYPES = ("float32", "bfloat16", "float16")


def size_of(text: str | None) -> dict[str, int]:
    """`512` or `80x48` (width x height) as height and width in pixels."""
    if text is None:
        return {}
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text.strip().lower(), re.ASCII)
    if not match or not int(match[1]) or (match[2] and not int(match[2])):
        raise ControlError(f"--size {text[:40]}: write one number of pixels or WIDTHxHEIGHT, such as 80x48")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def style_of(
    style: str,
    strength: float | None,
    blocks: str | None,
    at_steps: str | None,
    references: tuple[Reference, ...],
) -> tuple[Control, ...]:
    """The sharing control that the options of `generate` describe; none for `plain`."""
    if style == PLAIN:
        if references:
            raise ControlError("--reference needs a style that follows it: add --style aligned")
        for name, value in (("--strength", strength), ("--blocks", blocks), ("--at-steps", at_steps)):
            if value is not None:
                raise ControlError(f"{name} is of a style, and there is none: add --style, or write it in --control")
        return ()
    kinds = {**controls("sharing"), **presets("sharing")}
    if style not in kinds:
        more = f"; --control {style} has it" if style in {**controls(), **presets()} else ""
        raise ControlError(f"--style {style} is unknown; choose {', '.join([*kinds, PLAIN])}{more}")
    where = {name: text for name, text in (("blocks", blocks), ("steps", at_steps)) if text is not None}
    options: dict[str, Any] = {} if strength is None else {"strength": strength}
    if where:
        options["where"] = where
    if references:
        options["reference"] = references[0] if len(references) == 1 else references
    elif follows(control_class(style)):
        raise ControlError(f"--style {style} keeps the subject of a picture: add --reference PICTURE")
    return (control_of({"kind": style, **options}),)


def follows(cls: type[Control]) -> bool:
    """Whether a method cannot do without a picture."""
    field = cls.model_fields.get("reference")
    return field is not None and field.is_required()


def references_of(
    pictures: list[Path] | None, captions: list[str] | None, masks: list[Path] | None
) -> tuple[Reference, ...]:
    """References with their captions and masks, which belong to them in order."""
    count = len(pictures or ())
    for name, given in (("--caption", captions), ("--mask", masks)):
        if given and not count:
            raise ControlError(f"{name} says something of a reference: add --reference PICTURE")
        if len(given or ()) > count:
            raise ControlError(f"{name} is given {len(given or ())} times for {count} --reference; give one for each")
    captions, masks = list(captions or ()), list(masks or ())
    return tuple(
        Reference(
            picture=picture,
            caption=captions[i] if i < len(captions) else "",
            mask=masks[i] if i < len(masks) else None,
        )
        for i, picture in enumerate(pictures or ())
    )
