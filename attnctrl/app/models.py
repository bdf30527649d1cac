"""Loading a model for the command line: options checked, without the libraries' own progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from ..errors import ControlError

if TYPE_CHECKING:
    from ..pipelines.mixin import ControlledPipeline


def load_model(model: str, device: str | None, dtype: str | None = None, offload: str = "none") -> ControlledPipeline:
    """The pipeline that --model, --device, --dtype and --offload name; ControlError says what is wrong with them."""
    import diffusers
    import transformers

    from ..pipelines.loading import load
    from .options import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise ControlError(f"--dtype {dtype} is unknown; choose {', '.join(DTYPES)}")
    if offload not in ("none", "model", "sequential"):
        raise ControlError(f"--offload {offload} is unknown; choose none, model or sequential")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with Console().status(f"loading {model}"):
        return load(model, device=device, dtype=DTYPES[dtype] if dtype else None, offload=offload)  # type: ignore[arg-type]
