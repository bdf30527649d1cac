"""`load`: a controlled pipeline from an embedded model's name, a folder or a hub id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch

from ..embedded import MODELS, model_folder
from ..errors import ControlError
from .flux import ControlledFluxPipeline

PIPELINES = {"FluxPipeline": ControlledFluxPipeline, "ControlledFluxPipeline": ControlledFluxPipeline}


def default_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load(
    model: str | Path = "tiny-flux",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    offload: Literal["none", "model", "sequential"] = "none",
    **options: Any,
) -> ControlledFluxPipeline:
    """A pipeline ready to run.

    model: `tiny-flux`, a diffusers folder, or a hub id; `device`: None picks the best here; `dtype`: None is bfloat16 on
    CUDA and float32 elsewhere; `offload`: diffusers' CPU offload for GPUs with little memory; `options` go to
    `from_pretrained`.
    Raises ControlError when there is no such model, or it is none of a supported class.
    """
    place = default_device() if device is None else _device(device)
    dtype = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    folder: str | Path = model_folder(str(model)) if str(model) in MODELS else model
    if Path(folder).exists():
        cls = _class_of(Path(folder))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        cls = ControlledFluxPipeline
    else:
        raise ControlError(
            f"there is no model {str(model)!r}; give {' or '.join(MODELS)}, a diffusers folder, "
            "or a hub id such as black-forest-labs/FLUX.1-dev"
        )
    try:
        pipe = cls.from_pretrained(folder, torch_dtype=dtype, **options)
    except (OSError, ValueError, KeyError, AttributeError) as fault:
        reason = " ".join(str(fault).split())[:300]
        raise ControlError(f"cannot load the model {str(model)!r}: {reason}") from fault
    pipe.set_progress_bar_config(disable=True)
    if offload == "none":
        return pipe.to(place)
    if place.type == "cpu":
        raise ControlError(f"offload={offload!r} moves weights between a GPU and the CPU; on the CPU leave it out")
    enable = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
    enable(device=place)
    return pipe


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ControlError(f"there is no device {str(device)!r} here; cpu always works") from None
    return place


def _class_of(folder: Path) -> type[ControlledFluxPipeline]:
    index = folder / "model_index.json"
    try:
        name = json.loads(index.read_bytes()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise ControlError(f"{folder} is no diffusers model: {index.name} is missing or unreadable there") from None
    if name not in PIPELINES:
        raise ControlError(f"{folder} holds a {name}; supported are {', '.join(PIPELINES)}")
    return PIPELINES[name]
