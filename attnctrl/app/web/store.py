"""What each visitor has on the server: bounded, seen by nobody else, gone after a time."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from ...errors import ControlError
from .jobs import Job


class Visit:
    """One visitor's results, files and running job."""

    def __init__(self, root: Path, keeps: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="session-", dir=root))
        self._keeps = keeps
        self._results: OrderedDict[str, Any] = OrderedDict()
        self.jobs: dict[str, Job] = {}
        self.waiting: dict[str, bool] = {}
        """Work asked for and not begun, by tab; False: the visitor changed their mind."""
        self.used = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.jobs or self.waiting)

    def stop(self, tab: str) -> None:
        """Cancel a tab's work, begun or not."""
        if tab in self.jobs:
            self.jobs[tab].cancel()
        elif tab in self.waiting:
            self.waiting[tab] = False

    def keep(self, result: Any, name: str | None = None) -> str:
        """Put a result away under a name, a new one if not given; the oldest goes when there are too many."""
        name = name or secrets.token_urlsafe(9)
        self._results[name] = result
        self._results.move_to_end(name)
        while len(self._results) > self._keeps:
            self._results.popitem(last=False)
        return name

    def found(self, name: str) -> Any:
        """What was put away under a name; None when it is gone."""
        return self._results.get(name)

    def result(self, name: str) -> Any:
        """What was put away; ControlError when it is gone."""
        try:
            return self._results[name]
        except KeyError:
            raise ControlError("that result is no longer kept; make it again") from None

    def new_folder(self, stem: str) -> Path:
        """A new folder for files; the oldest of the session's goes when there are too many."""
        kept = sorted((p for p in self.folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for old in kept[: max(0, len(kept) - self._keeps + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{stem}-", dir=self.folder))

    def close(self) -> None:
        """Cancel, forget and delete."""
        for job in list(self.jobs.values()):
            job.cancel()
        self._results.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Store:
    """Sessions by Gradio's session hash."""

    def __init__(self, sessions: int, results: int, keep: float) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="attnctrl-app-"))
        self._most, self._results, self._keep = sessions, results, keep
        self._sessions: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, name: str | None) -> Visit:
        """The session of a hash, new or known; idle ones that are too old or too many go."""
        with self._lock:
            self._sweep()
            visit = self._sessions.pop(name or "", None) or Visit(self.root, self._results)
            self._sessions[name or ""] = visit
            visit.used = time.monotonic()
            idle = [key for key, one in self._sessions.items() if not one.busy and key != (name or "")]
            for key in idle[: max(0, len(self._sessions) - self._most)]:
                self._sessions.pop(key).close()
            return visit

    def drop(self, name: str | None) -> None:
        """A visitor left."""
        with self._lock:
            visit = self._sessions.pop(name or "", None)
        if visit:
            visit.close()

    def sweep(self) -> None:
        """Remove what is too old."""
        with self._lock:
            self._sweep()

    def close(self) -> None:
        """Remove everything."""
        with self._lock:
            for visit in self._sessions.values():
                visit.close()
            self._sessions.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def _sweep(self) -> None:
        limit = time.monotonic() - self._keep
        for key in [key for key, one in self._sessions.items() if one.used < limit and not one.busy]:
            self._sessions.pop(key).close()
