"""The app: all tabs in one page, its limits and its server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import look
from .api import endpoints
from .engine import Engine
from .frame import Frame, all_tabs
from .limits import Limits
from .store import Store

TITLE = "attnctrl"
SAYS = "Control the attention of diffusion transformers: styles over a set, single heads, attention by word."


def app(
    models: Sequence[str], limits: Limits | None = None, device: str | None = None, dtype: str | None = None,
    offload: str = "none",
) -> tuple[gr.Blocks, Frame]:  # fmt: skip
    """The page and its frame; `models` are those that visitors may use, the first one is chosen at first."""
    limits = limits or Limits()
    store = Store(limits.sessions, limits.results, limits.keep)
    frame = Frame(Engine(models, limits, device, dtype, offload), store)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, limits.keep)) as page:
        gr.HTML(f'<div class="ac-title"><h1>{TITLE}</h1><p>{SAYS}</p></div>')
        with gr.Tabs():
            for tab in all_tabs():
                with gr.Tab(tab.title, id=tab.title):
                    tab.build(frame)
        endpoints(frame)
        gr.Timer(60).tick(store.sweep, None, None, queue=False, api_visibility="private")

        def leave(request: gr.Request) -> None:
            store.drop(request.session_hash)

        page.unload(leave)
    page.queue(max_size=limits.queue, default_concurrency_limit=4)
    return page, frame


def launch(
    page: gr.Blocks, frame: Frame, host: str = "127.0.0.1", port: int | None = None, share: bool = False,
    auth: tuple[str, str] | None = None, browser: bool = False, mcp: bool = False, block: bool = True,
) -> Any:  # fmt: skip
    """Serve the page; returns Gradio's (app, local address, shared address) when `block` is off."""
    return page.launch(
        server_name=host, server_port=port, share=share, auth=auth, inbrowser=browser, mcp_server=mcp or None,
        max_file_size=f"{frame.engine.limits.upload_mb}mb", quiet=True,
        theme=look.theme(), css=look.CSS, footer_links=["api", "settings"], prevent_thread_lock=not block,
        enable_monitoring=False, ssr_mode=False, show_error=False,
        favicon_path=str(Path(__file__).with_name("favicon.svg")),
    )  # fmt: skip
