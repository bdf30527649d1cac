"""Who has a transformer, and what time it is in its run."""

from __future__ import annotations

import threading
from typing import Any

from .errors import ConflictError
from .layout import Arguments, Step


class SessionLock:
    """Who has a transformer: one session at a time. Copies of the model get a lock of their own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None

    def __reduce__(self) -> tuple[type[SessionLock], tuple[()]]:
        return SessionLock, ()

    def acquire(self, wait: bool) -> None:
        """Take the transformer; raise ConflictError if this thread has it, or if another has and `wait` is off."""
        if self.owner == threading.get_ident():
            raise ConflictError("this pipeline already has controls attached; attach them together: [first, second]")
        if not self.lock.acquire(blocking=wait):
            raise ConflictError("another thread is using this pipeline; wait for it or pass wait=True")
        self.owner = threading.get_ident()

    def release(self) -> None:
        self.owner = None
        self.lock.release()


class Clock:
    """Tells the step, the noise level and the call within the step from the scheduler; never counts blocks."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.timesteps: Any = None
        self.last: int | None = None
        self.within = 0

    def tick(self, arguments: Arguments) -> tuple[bool, Step]:
        """Whether a new run starts with this call (the scheduler has new timesteps), and its step."""
        scheduler = self.pipe.scheduler
        started = scheduler.timesteps is not self.timesteps
        begin = scheduler.begin_index or 0
        now = scheduler.step_index if scheduler.step_index is not None else begin
        self.within = 0 if started or now != self.last else self.within + 1
        self.timesteps, self.last = scheduler.timesteps, now
        return started, Step(now - begin, len(scheduler.timesteps) - begin, scheduler.sigmas[now], self.within)
