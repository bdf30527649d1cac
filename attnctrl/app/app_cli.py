"""`attnctrl app`: the app in the browser."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..embedded import MODELS
from ..errors import ControlError
from ..files import checked_file
from ..pipelines.facts import known_model
from .asked import loadable
from .console import console

if TYPE_CHECKING:
    from .web.limits import Limits


def app(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that visitors may use; may be repeated. The embedded ones if not given."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets the network in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 if not given.")] = None,
    auth: Annotated[str | None, typer.Option(help="NAME:PASSWORD that visitors must give (or ATTNCTRL_AUTH).")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="A public address through Gradio's servers; needs --auth.")
    ] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Also serve as MCP tools (extra [mcp]).")] = False,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    limits: Annotated[
        Path | None, typer.Option(help="JSON of what a visitor may ask for; attnctrl app --show-limits.")
    ] = None,
    show_limits: Annotated[bool, typer.Option("--show-limits", help="Print the limits as JSON, and stop.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best one here if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[str, typer.Option(help="none, model or sequential: for GPUs with little memory.")] = "none",
) -> None:
    """Open the app: style sets, heads, attention, evaluations in the browser."""
    from .web.limits import Limits

    if show_limits:
        console.print_json(Limits().model_dump_json())
        return
    allowed = _limits(limits) if limits else Limits()
    auth = auth or os.environ.get("ATTNCTRL_AUTH")
    name, _, password = (auth or "").partition(":")
    if auth and not (name and password):
        raise ControlError("--auth: write NAME:PASSWORD")
    if share and not auth:
        raise ControlError("--share opens this machine to everyone: add --auth NAME:PASSWORD")
    if mcp:
        _need_mcp()
    for one in model or MODELS:
        known_model(one)
    loadable(device, dtype, offload)
    can_listen(host, port)
    from .web.app import app as build
    from .web.app import launch

    page, frame = build(model or MODELS, allowed, device, dtype, offload)
    try:
        _, address, shared = launch(
            page, frame, host, port, share, (name, password) if auth else None, browser, mcp, block=False
        )
    except OSError as fault:
        raise ControlError(f"cannot listen at {host}, port {port or '7860 and above'}: {fault}") from None
    console.print(f"attnctrl is at {shared or address}  (Ctrl-C ends it)", highlight=False)
    frame.engine.warm()
    try:
        page.block_thread()
    finally:
        frame.store.close()


def _limits(path: Path) -> Limits:
    from .web.limits import Limits

    try:
        return Limits.model_validate_json(checked_file(path, "the limits").read_bytes())
    except OSError as fault:
        raise ControlError(f"cannot read the limits {path}: {fault.strerror}") from None


def can_listen(host: str, port: int | None) -> None:
    """Raise ControlError for an address and a port where no server can be."""
    if port is not None and not 1 <= port <= 65535:
        raise ControlError(f"--port {port}: give a number from 1 to 65535")
    where = f"--host {host[:80]}"
    if re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ControlError(f"{where} is no address; give 127.0.0.1, or 0.0.0.0 for the network") from None
    found: list[Any] = []
    look = threading.Thread(target=lambda: found.extend(_addresses(host)), daemon=True)  # a name may take minutes
    look.start()
    look.join(3)
    if not found:
        raise ControlError(f"{where} is not found; give 127.0.0.1, or 0.0.0.0 for the network")
    family, *_, address = found[0]
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address[0], port or 0))
        except OSError as fault:
            raise ControlError(f"cannot listen at {host}, port {port or 'any'}: {fault.strerror}") from None


def _addresses(host: str) -> list[Any]:
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []


def _need_mcp() -> None:
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise ControlError("--mcp needs the extra: pip install 'attnctrl[mcp]'") from None
