"""Files that users name: read only if they are files, and no larger than what they can be."""

from __future__ import annotations

from pathlib import Path

from .errors import ControlError

LARGEST = 2**28
"""Bytes; no recipe, list of prompts or preset has as many."""


def checked_file(path: str | Path, what: str) -> Path:
    """The path; ControlError for a pipe or a device, which may never end, and for a file beyond LARGEST.

    What is missing, or a folder, is left to whoever opens it.
    """
    found = Path(path)
    if found.exists() and not found.is_dir():
        if not found.is_file():
            raise ControlError(f"cannot read {what} {found}: it is a pipe or a device; give a file")
        if found.stat().st_size > LARGEST:
            raise ControlError(f"cannot read {what} {found}: it is larger than {LARGEST >> 20} MiB")
    return found
