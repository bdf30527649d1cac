"""Folders for results: checked and reserved before any work, complete or not there after it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import ControlError

CONFIG = "config.json"
"""What every run's folder holds from its first moment on."""
PROBE = ".attnctrl-"
"""How the folders begin that are made to see whether one can be."""
LETTERS = 200
"""Bytes of a folder's name; drafts beside it have longer ones, and file systems bear 255."""


class new_folder:
    """A folder that appears complete or not at all; raises ControlError for one that exists and is not empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        refuse_name(self.folder)
        refuse_used(self.folder)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.draft = Path(tempfile.mkdtemp(prefix=f".{self.folder.name[:40]}-", dir=self.folder.parent))
        except OSError as fault:
            raise ControlError(f"cannot write to {self.folder}: {fault.strerror}") from None
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            self.draft.chmod(0o755)
            if self.folder.exists():
                self.folder.rmdir()
            self.draft.rename(self.folder)
        else:
            shutil.rmtree(self.draft, ignore_errors=True)


def refuse_used(folder: Path) -> None:
    """Raise ControlError unless `folder` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ControlError(f"{folder} exists already; name a new folder with --out")


def refuse_foreign(folder: Path) -> None:
    """Raise ControlError for a folder that holds files and no run."""
    # listed before the look at the configuration, which every process writes before anything else
    ours = f".{CONFIG}", PROBE
    others = folder.is_dir() and [path for path in folder.iterdir() if not path.name.startswith(ours)]
    if others and not (folder / CONFIG).exists():
        raise ControlError(f"{folder} holds other files; give a new folder, or one that this command began")


def begun_with(folder: Path) -> Any:
    """The configuration that a run's folder was begun with, as JSON; ControlError for one that is damaged."""
    try:
        return json.loads((folder / CONFIG).read_bytes())
    except ValueError:
        raise ControlError(f"{folder / CONFIG} is damaged; give a new --out, or put the file back") from None


@contextmanager
def run_folder(folder: Path) -> Iterator[Path]:
    """Hold a new folder for a run, or take the one that it began, which stays as it is. ControlError for another's."""
    refuse_name(folder)
    try:
        refuse_foreign(folder)
        begun = (folder / CONFIG).exists()
        if begun:
            begun_with(folder)
    except OSError as fault:
        raise _unwritable(folder, fault.strerror) from None
    if begun and not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, os.strerror(errno.EACCES))
    with nullcontext() if begun else reserved(folder, used=True):
        yield folder


@contextmanager
def reserved(place: Path, *, file: bool = False, used: bool = False) -> Iterator[Path]:
    """Hold a new folder, or the folder of a `file`, before the work that fills it; what was made goes if it fails.

    used: it may hold something already, as of another process of the same run. Raises ControlError for a place that
    cannot be written.
    """
    refuse_name(place)
    folder = place.parent if file else place
    made: list[Path] = []
    try:
        if file and place.is_dir():
            raise ControlError(f"{place} is a folder; name a file with --out")
        first = next(one for one in (folder, *folder.parents) if one.exists())
        if not first.is_dir():
            raise ControlError(f"{first} is a file; name a new folder with --out")
        if not file and not used:
            refuse_used(place)
        if not folder.exists():
            made = [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        for one in {folder, folder if file else folder.parent}:
            os.rmdir(tempfile.mkdtemp(prefix=PROBE, dir=one))
    except OSError as fault:
        _remove(made)
        raise _unwritable(place, fault.strerror) from None
    except BaseException:
        _remove(made)
        raise
    try:
        yield place
    except BaseException:
        _remove(made)
        raise


def _unwritable(place: Path, why: str | None) -> ControlError:
    return ControlError(f"--out {str(place)[:80]}: cannot be written: {why}")


def refuse_name(place: Path) -> None:
    """Raise ControlError for a name that no folder can have."""
    if not place.name.strip() or place.name == "..":
        raise ControlError("--out names no folder; give the name of a new one")
    try:
        long = max(len(part.encode()) for part in place.parts) > LETTERS
    except UnicodeEncodeError:
        raise ControlError("--out holds letters that are no text; name the folder in UTF-8") from None
    if "\0" in str(place):
        raise ControlError("--out holds a zero byte; give another name")
    if any(ord(letter) < 32 for letter in str(place)):
        raise ControlError("--out holds an end of line, a tab or the like; give another name")
    if long:
        raise ControlError(f"--out has a name of over {LETTERS} letters; give a shorter one")


def free_folder(stem: str) -> Path:
    """The first folder attnctrl-out/STEM-001 ... that is not there yet."""
    home = Path("attnctrl-out")
    return next(path for n in range(1, 10**6) if not (path := home / f"{stem}-{n:03d}").exists())


def _remove(made: list[Path]) -> None:
    for one in made:
        try:
            one.rmdir()
        except OSError:
            return
