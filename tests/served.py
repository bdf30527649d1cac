"""The app on a free port, in this process: for the tests of its clients and of its page."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attnctrl.app.web.app import app, launch
from attnctrl.app.web.frame import Frame
from attnctrl.app.web.limits import Limits
from attnctrl.app.web.settings import NAMES
from attnctrl.embedded import MODELS


@dataclass(frozen=True)
class Served:
    """A running app."""

    address: str
    frame: Frame


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def framed(models: Sequence[str] = MODELS, **limits: Any) -> Iterator[Frame]:
    """The app's frame without a server, until the end of the block."""
    _, found = app(models, Limits(**limits), device="cpu")
    try:
        yield found
    finally:
        found.store.close()


def settings(**given: Any) -> list[Any]:
    """Values of the settings' components: tiny-sd3, seed 3, two steps, or what is given."""
    usual = {"model": "tiny-sd3", "seed": 3, "fresh": False, "steps": 2}
    return [(usual | given).get(name) for name in NAMES]


@contextmanager
def served(limits: Limits | None = None, **options: Any) -> Iterator[Served]:
    """The app with the embedded models on the CPU, until the end of the block; the first model is loaded."""
    page, frame = app(MODELS, limits, device="cpu")
    with frame.engine.pipe(MODELS[0]):
        pass
    try:
        _, address, _ = launch(page, frame, port=free_port(), block=False, **options)
        yield Served(address.rstrip("/"), frame)
    finally:
        page.close(verbose=False)
        frame.store.close()
