"""Long work on the server: told of its progress, cancelled within a step, its last words as they come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from PIL import Image


class Cancelled(BaseException):
    """The visitor does not want it any more; no failure, so that `except Exception` lets it pass."""


@dataclass(frozen=True)
class Update:
    """What is known of a job: steps done of all, what it does, seconds left (None: not known), previews."""

    done: int = 0
    total: int = 0
    doing: str = ""
    left: float | None = None
    previews: dict[int, Image.Image] | None = None


class Job:
    """One piece of work in a thread of its own. `run` streams updates and ends with the result, or raises."""

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._updates: queue.Queue[Update] = queue.Queue()
        self._begun = time.monotonic()
        self._doing, self._before, self._total = "", 0, 0
        self.previews: dict[int, Image.Image] = {}

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stop at the next step."""
        self._cancel.set()

    @property
    def reached(self) -> int:
        """How many of the planned steps the parts so far have."""
        return self._before

    def check(self) -> None:
        """Raise Cancelled if it was asked to stop."""
        if self.cancelled:
            raise Cancelled

    def plan(self, total: int) -> None:
        """Say how many steps all parts have together; time left counts from here."""
        self._begun, self._total, self._before = time.monotonic(), total, 0

    def part(self, doing: str, steps: int = 0) -> Callable[..., None]:
        """Begin a part of so many of the planned steps; the returned progress(done, total, left) says how far it is."""
        self._doing, start = doing, self._before
        self._before += steps
        self.tell(start)

        def progress(done: int, total: int, left: float | None = None) -> None:
            self.check()
            self.tell(start + (steps * done / total if steps else done), None if steps else total, left)

        return progress

    def tell(self, done: float, total: int | None = None, left: float | None = None) -> None:
        """Put an update out."""
        whole = total or self._total
        if left is None and 0 < done < whole:
            left = (time.monotonic() - self._begun) * (whole - done) / done
        shown = dict(self.previews) if self.previews else None
        self._updates.put(Update(int(done), whole, self._doing, left, shown))

    def run(self, work: Callable[[], Any], thread: Executor | None = None, every: float = 0.25) -> Iterator[Any]:
        """Run `work` in `thread` (None: one of its own); yield its latest Update now and then, at last its result.

        The result is never an Update. A fault of the work is raised here; a caller that stops listening cancels it.
        """
        own = ThreadPoolExecutor(1) if thread is None else None
        future = (own or thread).submit(work)  # type: ignore[union-attr]
        try:
            while not future.done():
                wait([future], every)
                latest = self._latest()
                if latest is not None and not future.done():
                    yield latest
        finally:
            if not future.done():
                self.cancel()
                wait([future])
            if own:
                own.shutdown()
        yield future.result()

    def _latest(self) -> Update | None:
        latest = None
        while True:
            try:
                latest = self._updates.get_nowait()
            except queue.Empty:
                return latest
