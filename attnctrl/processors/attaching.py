"""`attached`: controls on a diffusers pipeline or a transformer, for the length of a with-block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..clock import SessionLock
from ..control import Control
from ..errors import ControlError, NoEffectWarning
from ..given import MOST_GUIDANCE, number, texts, whole
from ..host import host_of, known_hosts, register_model
from ..registry import controls_of
from ..session import Session
from ..source import Source
from ..words import Prompts
from . import flux, sd3  # noqa: F401 - they register themselves

Controls = Control | type[Control] | str | Sequence[Control | type[Control] | str] | None
"""What `control=` may be."""

__all__ = ["attached", "host_of", "known_hosts", "register_model"]


class attached:
    """Attach controls to a FLUX or SD3 pipeline or transformer, `with attached(pipe, control) as session:`; on leaving,
    also by an exception, every processor is back.

    pipe: a diffusers pipeline, a modular one, or a transformer alone, whose caller then sets the clock (`Session.at`).
    control: a control, its class, a text such as "nag:prompt=blurry", several of these, or None for none; composed by
        their order, and by kind where that is equal.
    images_per_prompt: the pipeline's `num_images_per_prompt`, so that the j-th images of all prompts are a set.
    guidance_scale: FLUX's `true_cfg_scale`, which a pipeline does not keep, for controls that replace its guidance.
    prompts: what the rows say, for controls that name words; controlled pipelines say it themselves.
    source: the opened picture that controls edit (`attnctrl.open_source`).
    wait: wait for another thread's session on the same model, or raise ConflictError.
    Raises ControlError for an unknown model, a selection without sites, a call that cannot carry a control. May be
    entered again once it was left; every time is a session of its own.
    """

    _entered: tuple[ExitStack, Session | None] | None = None

    def __init__(
        self,
        pipe: Any,
        control: Controls,
        *more: Controls,
        images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        prompts: Prompts | Sequence[str] | str | None = None,
        source: Source | None = None,
        wait: bool = True,
    ) -> None:
        if isinstance(pipe, (str, Path)):
            raise ControlError(
                f"{str(pipe)[:60]!r} is no pipeline; attached(attnctrl.load(MODEL), control) takes one first"
            )
        whole("images_per_prompt", images_per_prompt)
        if guidance_scale is not None:
            number("guidance_scale", guidance_scale, MOST_GUIDANCE)
        self._pipe, self._wait = pipe, wait
        self._controls = [one for each in (control, *more) for one in controls_of(each)]
        said = prompts if prompts is None or isinstance(prompts, Prompts) else Prompts(texts("prompts", prompts))
        self._options = images_per_prompt, guidance_scale, said, source

    def __enter__(self) -> Session | None:
        if self._entered:
            raise ControlError("these controls are attached already; leave the block before you enter it again")
        stack, session = ExitStack(), None
        with stack:
            if self._controls:
                host = host_of(self._pipe)
                locks = [t.__dict__.setdefault("_attnctrl_lock", SessionLock()) for t in host.transformers.values()]
                stack.enter_context(_held(locks, self._wait))
                ordered = sorted(self._controls, key=lambda one: (one.order, one.kind))
                session = Session(host, ordered, locks[0], *self._options)
                stack.callback(session.remove)
                session.install()
            self._entered = stack.pop_all(), session
        return session

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._entered
        (stack, session), self._entered = self._entered, None
        stack.close()
        if session is not None and kind is None:
            session.warn()

    def __del__(self) -> None:
        if self._entered:
            (stack, _), self._entered = self._entered, None
            stack.close()
            text = "controls were taken off, since nobody kept what attached() returned; write: with attached(...)"
            warnings.warn(text, NoEffectWarning, stacklevel=2)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"there is no {name!r} before the block: with attached(...) as session: session.{name}")


@contextmanager
def _held(locks: Sequence[SessionLock], wait: bool) -> Iterator[None]:
    """The transformers, all of them or none."""
    taken: list[SessionLock] = []
    try:
        for lock in locks:
            lock.acquire(wait)
            taken.append(lock)
        yield
    finally:
        for lock in reversed(taken):
            lock.release()
