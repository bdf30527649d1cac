"""Loading a model for the command line: options checked, without the libraries' own progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from ..pipelines.mixin import ControlledPipeline


def load_model(model: str, device: str | None, dtype: str | None = None, offload: str = "none") -> ControlledPipeline:
    """The pipeline that --model, --device, --dtype and --offload name; ControlError says what is wrong with them."""
    from ..pipelines.facts import known_model
    from .asked import loadable

    loadable(device, dtype, offload)
    known_model(model)
    import diffusers
    import torch
    import transformers

    from ..pipelines.loading import load

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with Console().status(f"loading {model}"):
        return load(model, device=device, dtype=getattr(torch, dtype) if dtype else None, offload=offload)  # type: ignore[arg-type]
