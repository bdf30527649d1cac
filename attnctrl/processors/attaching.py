"""`attached`: controls on a diffusers pipeline, for the length of a with-block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..architecture import Architecture
from ..clock import SessionLock
from ..control import Control
from ..errors import ControlError
from ..session import Session
from .flux import FluxArchitecture
from .sd3 import SD3Architecture

ARCHITECTURES: tuple[Any, ...] = (FluxArchitecture, SD3Architecture)


def architecture_of(pipe: Any) -> Architecture:
    """The architecture of a pipeline's transformer; raises ControlError for one that is not known here."""
    transformer = getattr(pipe, "transformer", None)
    for architecture in ARCHITECTURES:
        if isinstance(getattr(transformer, "_orig_mod", transformer), architecture.transformer):
            found: Architecture = architecture()
            return found
    known = ", ".join(a.transformer.__name__ for a in ARCHITECTURES)
    raise ControlError(
        f"{type(pipe).__name__} with a {type(transformer).__name__} is not supported; controls run on {known}"
    )


@contextmanager
def attached(
    pipe: Any,
    control: Control | Sequence[Control] | None,
    *,
    images_per_prompt: int = 1,
    guidance_scale: float | None = None,
    wait: bool = True,
) -> Iterator[Session | None]:
    """Attach controls to any diffusers FLUX or SD3 pipeline; on leaving, also by an exception, every processor is back.

    pipe: a diffusers pipeline; `control`: one control, several (composed by their order), or None for none.
    images_per_prompt: the pipeline's `num_images_per_prompt`, so that the j-th images of all prompts are a set.
    guidance_scale: FLUX's `true_cfg_scale`, which a pipeline does not keep, for controls that replace its guidance.
    wait: wait for another thread's session on the same model, or raise ConflictError.
    Raises ControlError for an unknown model, a selection without sites, a call that cannot carry a control.
    """
    controls = [control] if isinstance(control, Control) else list(control or ())
    if not controls:
        yield None
        return
    architecture = architecture_of(pipe)
    lock = pipe.transformer.__dict__.setdefault("_attnctrl_lock", SessionLock())
    lock.acquire(wait)
    try:
        session = Session(
            pipe, architecture, sorted(controls, key=lambda c: c.order), images_per_prompt, guidance_scale
        )
        try:
            session.install()
            yield session
        finally:
            session.remove()
        session.warn()
    finally:
        lock.release()
