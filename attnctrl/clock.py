"""Who has a transformer, and what time it is in its run: the scheduler's clock, or the caller's own."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .errors import ConflictError, ControlError
from .layout import Step

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = 10.0
"""Seconds after which a call that waits for another thread's session says so."""


class SessionLock:
    """Who has a transformer: one session, or one call, at a time. Copies of the model get a lock of their own."""

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

    def wait(self) -> None:
        """Take the transformer for one plain call, when the other thread's session has ended; says so if that is
        long."""
        if not self.lock.acquire(timeout=PATIENCE):
            text = "a plain call waits for another thread's controls on the same transformer to be taken off"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self.lock.acquire()
        self.owner = threading.get_ident()

    def release(self) -> None:
        """Give it back."""
        self.owner = None
        self.lock.release()


@dataclass(frozen=True)
class Moment:
    """A call's step, whether a run begins with it, and what the caller says of its prompts (None: ask the host)."""

    step: Step
    begins: bool
    conditional: tuple[bool, ...] | None = None


class Clock(Protocol):
    """Tells the time of a transformer call; never counts blocks."""

    def tick(self, latents: Any, continues: bool) -> Moment:
        """The moment of a call with these latents; `continues`: it belongs to the evaluation before, whatever they
        are."""
        ...


class SchedulerClock:
    """The scheduler's step and noise level. A run begins when the scheduler has new timesteps.

    A solver of order two (Heun) has two entries a step. A call with the latents of the one before is another pass of
    the
    same evaluation (FLUX's negative prompts); with other latents within one entry it is a new evaluation (a caller's
    midpoint).
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._timesteps: Any = None
        self._entry = self._within = self._call = 0
        self._latents: Callable[[], Any] = lambda: None

    def tick(self, latents: Any, continues: bool) -> Moment:
        """The moment of a call."""
        scheduler = self.scheduler
        begins = scheduler.timesteps is not self._timesteps
        begin = scheduler.begin_index or 0
        entry = scheduler.step_index if scheduler.step_index is not None else begin
        if begins or entry != self._entry:
            self._within = self._call = 0
        elif continues or self._latents() is latents:
            self._call += 1
        else:
            self._within, self._call = self._within + 1, 0
        self._timesteps, self._entry = scheduler.timesteps, entry
        if not continues:
            self._latents = weakref.ref(latents) if hasattr(latents, "__weakref__") else lambda: None
        order = getattr(scheduler, "order", 1)
        index, stage = divmod(entry - begin, order)
        count = -(-(len(scheduler.timesteps) - begin) // order)
        step = Step(index, count, scheduler.sigmas[entry], self._call, self._within + stage)
        return Moment(step, begins)


class CallerClock:
    """The time that the caller sets before a call (`Session.at`), for loops of one's own."""

    def __init__(self) -> None:
        self._now: Step | None = None
        self._conditional: tuple[bool, ...] = (True,)
        self._evaluation = -1
        self._begins = True

    def at(self, index: int, count: int, sigma: Tensor | float, conditional: bool | tuple[bool, ...]) -> None:
        """Set the step; one before the last begins another run."""
        import torch

        if not 0 <= index < count:
            raise ControlError(f"step {index} is not among the {count} steps of the run; they count from 0")
        if self._now is not None and index != self._now.index:
            self._evaluation = -1
            self._begins |= index < self._now.index
        self._conditional = (conditional,) if isinstance(conditional, bool) else tuple(conditional)
        self._now = Step(index, count, torch.as_tensor(sigma))

    def begin(self) -> None:
        """The next call begins a run."""
        self._begins, self._evaluation = True, -1

    def tick(self, latents: Any, continues: bool) -> Moment:
        """The moment that was set: every call with prompts is an evaluation of the step, one without belongs to the
        last."""
        if self._now is None:
            raise ControlError(
                "nobody says what step it is: session.at(step, of=steps, sigma=...) before each call does"
            )
        said = any(self._conditional)
        self._evaluation += said
        step = Step(self._now.index, self._now.count, self._now.sigma, int(not said), max(0, self._evaluation))
        begins, self._begins = self._begins, False
        return Moment(step, begins, self._conditional)
