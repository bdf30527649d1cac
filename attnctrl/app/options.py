"""What the command line's words mean: sizes, styles, devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..control import Control, Reference
from ..errors import ControlError
from ..processors import SHARING

PLAIN = "plain"
KINDS = {control.model_fields["kind"].default: control for control in SHARING}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def size_of(text: str | None) -> dict[str, int]:
    """`512` or `80x48` (width x height) as height and width in pixels."""
    if text is None:
        return {}
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match or not int(match[1]) or (match[2] and not int(match[2])):
        raise ControlError(f"--size {text}: write one number of pixels or WIDTHxHEIGHT, such as 80x48")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def control_of(
    style: str,
    strength: float,
    blocks: str | None,
    at_steps: str | None,
    references: tuple[Reference, ...],
) -> tuple[Control, ...]:
    """The controls that the options of `generate` describe; none for `plain`."""
    if style == PLAIN:
        if references:
            raise ControlError("--reference needs a style that follows it: add --style aligned")
        return ()
    if style not in KINDS:
        raise ControlError(f"--style {style} is unknown; choose {', '.join([*KINDS, PLAIN])}")
    cls = KINDS[style]
    where = {name: text for name, text in (("blocks", blocks), ("steps", at_steps)) if text is not None}
    options: dict[str, Any] = {"strength": strength}
    if where:
        options["where"] = where
    if references:
        options["reference"] = references[0] if len(references) == 1 else references
    elif cls.model_fields["reference"].is_required():
        raise ControlError(f"--style {style} keeps the subject of a picture: add --reference PICTURE")
    return (cls(**options),)


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
