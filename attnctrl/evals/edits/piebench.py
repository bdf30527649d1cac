"""PIE-Bench (X. Ju et al., "Direct Inversion", 2023) as edits: its folder with mapping_file.json and its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from ...descriptions import explain
from ...errors import ControlError
from ...pictures import read_picture
from ...region import Region
from .sets import EditCase, Kind

MAPPING, PICTURES, SIDE = "mapping_file.json", "annotation_images", 512
KINDS: tuple[Kind, ...] = (
    "other", "change object", "add", "remove", "change content", "change pose", "change color", "change material",
    "change background", "change style",
)  # fmt: skip
"""By its editing_type_id."""


def read_piebench(folder: Path) -> tuple[EditCase, ...]:
    """All edits of a folder; ControlError names the entry of a fault. Words in brackets lose them."""
    path = folder / MAPPING
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "it is no JSON"
        raise ControlError(f"{folder} is no folder of PIE-Bench: cannot read {path}: {reason}") from None
    if not isinstance(entries, dict) or not entries:
        raise ControlError(f"{path} holds no edit; it should be an object of entries by their number")
    return tuple(_edit(folder, name, entry) for name, entry in entries.items())


def mask_of(runs: Sequence[int]) -> Image.Image:
    """The mask of runs [start, length, ...] over 512 x 512 px, white where the picture is edited.

    Its border of one pixel is white, as in the benchmark's own code. ValueError for runs beyond the picture.
    """
    flat = np.zeros(SIDE * SIDE, np.uint8)
    if len(runs) % 2:
        raise ValueError("the mask's runs should be pairs of start and length")
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if start < 0 or length < 0 or start + length > flat.size:
            raise ValueError(f"the mask's run of {length} from {start} lies beyond {SIDE} x {SIDE} px")
        flat[start : start + length] = 255
    mask = flat.reshape(SIDE, SIDE)
    mask[[0, -1]], mask[:, [0, -1]] = 255, 255
    return Image.fromarray(mask)


def _edit(folder: Path, name: str, entry: Any) -> EditCase:
    try:
        number = int(entry["editing_type_id"])
        if not 0 <= number < len(KINDS):
            raise ValueError(f"editing_type_id {number} is not 0 to {len(KINDS) - 1}")
        source, target = (_plain(entry[key]) for key in ("original_prompt", "editing_prompt"))
        return EditCase(
            id=name, kind=KINDS[number], source=source, target=target, region=Region(mask=mask_of(entry["mask"])),
            picture=read_picture(folder / PICTURES / entry["image_path"]),
        )  # fmt: skip
    except KeyError as fault:
        raise ControlError(f"{folder / MAPPING}, entry {name!r}: {fault} is missing") from None
    except ValidationError as fault:
        raise ControlError(f"{folder / MAPPING}, entry {name!r}: {explain(fault)}") from None
    except (ControlError, ValueError, TypeError) as fault:
        raise ControlError(f"{folder / MAPPING}, entry {name!r}: {fault}") from None


def _plain(prompt: str) -> str:
    return " ".join(prompt.replace("[", "").replace("]", "").split())
