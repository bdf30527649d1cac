"""attnctrl as a Hugging Face Space: the app on the Space's address and port."""

from __future__ import annotations

import os

from attnctrl.app.web.app import app, launch
from attnctrl.app.web.limits import Limits
from attnctrl.embedded import MODELS

models = [name for name in os.environ.get("ATTNCTRL_MODELS", "").split(",") if name] or list(MODELS)
limits = Limits.model_validate_json(os.environ.get("ATTNCTRL_LIMITS") or "{}")
name, _, password = os.environ.get("ATTNCTRL_AUTH", "").partition(":")

page, frame = app(models, limits)

if __name__ == "__main__":
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    launch(
        page,
        frame,
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        port=port,
        auth=(name, password) if name else None,
    )
