"""`attached`: controls on a diffusers pipeline or a transformer, for the length of a with-block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..clock import SessionLock
from ..control import Control
from ..host import host_of, known_hosts, register_model
from ..registry import controls_of
from ..session import Session
from ..source import Source
from ..words import Prompts
from . import flux, sd3  # noqa: F401 - they register themselves

Controls = Control | type[Control] | str | Sequence[Control | type[Control] | str] | None
"""What `control=` may be."""

__all__ = ["attached", "host_of", "known_hosts", "register_model"]


@contextmanager
def attached(
    pipe: Any,
    control: Controls,
    *,
    images_per_prompt: int = 1,
    guidance_scale: float | None = None,
    prompts: Prompts | Sequence[str] | None = None,
    source: Source | None = None,
    wait: bool = True,
) -> Iterator[Session | None]:
    """Attach controls to a FLUX or SD3 pipeline or transformer; on leaving, also by an exception, every processor is
    back.

    pipe: a diffusers pipeline, a modular one, or a transformer alone, whose caller then sets the clock (`Session.at`).
    control: a control, its class, a text such as "nag:prompt=blurry", several of these, or None for none; composed by
        their order, and by kind where that is equal.
    images_per_prompt: the pipeline's `num_images_per_prompt`, so that the j-th images of all prompts are a set.
    guidance_scale: FLUX's `true_cfg_scale`, which a pipeline does not keep, for controls that replace its guidance.
    prompts: what the rows say, for controls that name words; controlled pipelines say it themselves.
    source: the opened picture that controls edit (`attnctrl.open_source`).
    wait: wait for another thread's session on the same model, or raise ConflictError.
    Raises ControlError for an unknown model, a selection without sites, a call that cannot carry a control.
    """
    controls = controls_of(control)
    if not controls:
        yield None
        return
    host = host_of(pipe)
    said = Prompts(tuple(prompts)) if prompts is not None and not isinstance(prompts, Prompts) else prompts
    locks = [t.__dict__.setdefault("_attnctrl_lock", SessionLock()) for t in host.transformers.values()]
    with _held(locks, wait):
        ordered = sorted(controls, key=lambda one: (one.order, one.kind))
        session = Session(host, ordered, locks[0], images_per_prompt, guidance_scale, said, source)
        try:
            session.install()
            yield session
        finally:
            session.remove()
        session.warn()


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
