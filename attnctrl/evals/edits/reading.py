"""Edits from JSONL files, the shipped ones, or PIE-Bench's folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ControlError
from ...pictures import DATA_URI, read_picture
from ..runs.sets import read_lines
from .piebench import read_piebench
from .sets import EditCase

SHIPPED = Path(__file__).parent / "embedded.jsonl"
EXAMPLE = '{"id": "hat-1", "kind": "change color", "source": "a red hat", "target": "a blue hat", "region": "hat"}'


def read_edits(name: str | Path) -> tuple[EditCase, ...]:
    """Edits from a JSONL file, PIE-Bench's folder, or the shipped ones by the name `embedded`.

    ControlError names the line of a fault. Pictures and masks by path lie beside the file.
    """
    path = Path(name)
    if path.is_dir():
        return read_piebench(path)
    if str(name) == SHIPPED.stem and not path.exists():
        path = SHIPPED
    elif path.suffix != ".jsonl" and not path.exists():
        raise ControlError(f"there are no edits {str(name)!r}; give a .jsonl file, PIE-Bench's folder, or embedded")
    return read_lines(path, "edit", EXAMPLE, partial(_edit, path.parent))


def _edit(folder: Path, values: dict[str, Any]) -> EditCase:
    if isinstance(picture := values.get("picture"), str) and not picture.startswith(DATA_URI):
        values["picture"] = read_picture(folder / picture)
    _masks(folder, values.get("region"))
    return EditCase.model_validate(values)


def _masks(folder: Path, region: Any) -> None:
    """Masks by path, read from beside the file."""
    if isinstance(region, dict):
        mask = region.get("mask")
        if isinstance(mask, str) and not mask.startswith(DATA_URI):
            region["mask"] = read_picture(folder / mask)
        for part in region.get("parts") or ():
            _masks(folder, part)
