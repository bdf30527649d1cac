"""A run's folder: its configuration, and results appended by every process, so that a killed run goes on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from pydantic import BaseModel

from ..errors import ControlError
from ..pipelines.folders import CONFIG as CONFIG
from ..pipelines.folders import begun_with, refuse_foreign


def processes() -> PartialState:
    """This process among those that `accelerate launch` or torchrun started; alone without them."""
    return PartialState(cpu=not torch.cuda.is_available())


def own_device(device: str | None) -> str | None:
    """The asked device; among several processes this one's own, else None for the best one."""
    state = processes()
    return device or (str(state.device) if state.num_processes > 1 else None)


class Ledger:
    """`results-RANK.jsonl` files in a folder: one line a finished batch, {"id": ..., "rows": [...]}.

    A line is written whole and synced; a torn last line, of a killed process, is forgotten. Raises ControlError for a
    folder of another run and for a damaged line, named by file and number.
    """

    def __init__(self, folder: Path, config: BaseModel, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.done: dict[str, list[dict[str, Any]]] = {}
        self._counted: dict[Path, tuple[int, int]] = {}
        text = config.model_dump_json(indent=2) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise ControlError(f"cannot write to {folder}: {fault.strerror}") from None
        own = folder / CONFIG
        refuse_foreign(folder)
        if not own.exists():
            write_file(own, text.encode())
        else:
            _refuse_another(own, text)
        self._own, self._text = own, text
        self.read()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone of its rank in the folder; ControlError when another run is at it."""
        lock = FileLock(self.folder / f".lock-{self.rank}", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise ControlError(
                f"another process is writing to {self.folder}; wait for it, or give a new --out"
            ) from None
        try:
            _refuse_another(self._own, self._text)  # of one that began at the same moment
            self.read()
            yield
        finally:
            lock.release()

    def lines(self) -> int:
        """How many lines all processes have written by now; reads only what is new since it was last asked."""
        for path in self.folder.glob("results-*.jsonl"):
            seen, count = self._counted.get(path, (0, 0))
            with path.open("rb") as file:
                file.seek(seen)
                new = file.read()
            # not past a torn line, which is cut off before the next is written
            self._counted[path] = seen + new.rfind(b"\n") + 1, count + new.count(b"\n")
        return sum(count for _, count in self._counted.values())

    def read(self) -> None:
        """Take in what all processes have finished."""
        self.done = {}
        for path in sorted(self.folder.glob("results-*.jsonl")):
            for entry in entries(path):
                self.done[entry["id"]] = entry["rows"]

    def append(self, identity: str, rows: list[dict[str, Any]]) -> None:
        """Add one finished batch, on disk when this returns."""
        path = self.folder / f"results-{self.rank}.jsonl"
        _mend(path)
        with path.open("ab") as file:
            file.write(json.dumps({"id": identity, "rows": rows}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[identity] = rows

    def write(self, name: str, text: str) -> Path:
        """A file of the run, all or nothing."""
        return write_file(self.folder / name, text.encode())


def _refuse_another(own: Path, text: str) -> None:
    begun = begun_with(own.parent)
    if begun != json.loads(text):
        named = ", ".join(_differing(begun, json.loads(text)))
        raise ControlError(f"{own.parent} was begun with another {named}; give a new --out, or the same settings")


def write_file(path: Path, body: bytes) -> Path:
    """Write a file, all or nothing, on disk when this returns; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with draft.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        return draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a results file; a torn last one is left out. ControlError for a damaged one."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
            yield {"id": str(entry["id"]), "rows": list(entry["rows"])}
        except (ValueError, TypeError, KeyError):
            raise ControlError(f"{path}, line {number} is damaged; delete that line to compute it again") from None


def _mend(path: Path) -> None:
    """Cut a torn last line off."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in new if old.get(name) != new[name]] or ["version of its settings"]
