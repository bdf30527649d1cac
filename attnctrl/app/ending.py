"""How a command ends: one line for whatever went wrong, the traceback in a log file, what a Ctrl-C left."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ControlError

MISTAKE, FAULT, STOPPED = 2, 1, 130
"""Exit codes: of a user's mistake, of a fault of ours, of Ctrl-C."""


class Stopped(Exception):
    """Ctrl-C, and what it left."""


@contextmanager
def keeping(text: str) -> Iterator[None]:
    """Work of which a Ctrl-C leaves what `text` says."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(text) from None


def end(fault: BaseException) -> int:
    """Say a fault in one line on stderr; the exit code."""
    from pydantic import ValidationError

    if isinstance(fault, (KeyboardInterrupt, Stopped)):
        say(f"stopped; {str(fault) or 'nothing was written'}")
        return STOPPED
    if isinstance(fault, ControlError):
        say(str(fault))
    elif isinstance(fault, ValidationError):
        from ..descriptions import explain

        say(explain(fault))
    elif type(fault).__name__ == "NoArgsIsHelpError":
        fault.show()  # type: ignore[attr-defined]
    elif hasattr(fault, "format_message"):  # typer's own, or click's: which one depends on the version
        say(f"{fault.format_message().rstrip('.')}; see {_command(fault)} --help")
    elif text := _known(fault):
        say(f"{text} (all of it is in {write_log(fault)})")
    else:
        place = write_log(fault)
        say(f"this should not happen: {type(fault).__name__}: {str(fault)[:200]}; please report it with {place}")
        return FAULT
    return MISTAKE


def say(text: str) -> None:
    """One line on stderr; what is no text is replaced."""
    one_line = " ".join(text.split()).encode("utf-8", "replace").decode()
    Console(stderr=True, emoji=False).print(
        f"attnctrl: {one_line}", style="red", highlight=False, soft_wrap=True, markup=False
    )


def show_warning(message: Warning | str, *rest: Any, **more: Any) -> None:
    """A warning as one line on stderr."""
    text = " ".join(str(message).split()).encode("utf-8", "replace").decode()
    Console(stderr=True, emoji=False).print(
        f"warning: {text}", style="yellow", highlight=False, soft_wrap=True, markup=False
    )


def quiet_others() -> None:
    """Keep to themselves what other libraries say that users of the command line can do nothing about."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    warnings.showwarning = show_warning
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)


def write_log(fault: BaseException) -> str:
    """Write the traceback into the user's cache folder; where it lies, or why it does not."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnctrl" / "log"
    path = home / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    words = " ".join(sys.argv[1:])
    text = f"attnctrl {words}\n\n{''.join(traceback.format_exception(fault))}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as why:
        return f"no log: {home} cannot be written ({why.strerror})"
    return str(path)


def _known(fault: BaseException) -> str:
    """A sentence for what is no fault of ours: the machine's memory, disk, and files."""
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError" or "can't allocate" in str(fault):
        return "there is not enough memory; make smaller pictures (--size) or fewer at once (--batch-size)"
    if isinstance(fault, OSError) and fault.errno == errno.ENOSPC:
        return "the disk is full; make room, or name another folder with --out"
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename or 'a file'}: {fault.strerror}"
    return ""


def _command(fault: Any) -> str:
    path = getattr(getattr(fault, "ctx", None), "command_path", "attnctrl")
    return "attnctrl" + path[path.find(" ") :] if " " in path else "attnctrl"
