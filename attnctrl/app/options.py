"""What the command line's words mean: sizes, styles, devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..control import Control, Reference
from ..errors import ControlError
from ..processors import CONTROLS

PLAIN = "plain"
KINDS = {control.model_fields["kind"].default: control for control in CONTROLS}
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
    reference: Path | None,
    caption: str,
) -> tuple[Control, ...]:
    """The controls that the options of `generate` describe; none for `plain`."""
    if style == PLAIN:
        if reference is not None:
            raise ControlError("--reference needs a style that follows it: add --style aligned")
        return ()
    if style not in KINDS:
        raise ControlError(f"--style {style} is unknown; choose {', '.join([*KINDS, PLAIN])}")
    cls = KINDS[style]
    where = {name: text for name, text in (("blocks", blocks), ("steps", at_steps)) if text is not None}
    options: dict[str, Any] = {"strength": strength}
    if where:
        options["where"] = where
    if reference is not None:
        options["reference"] = Reference(picture=reference, caption=caption)
    return (cls(**options),)
