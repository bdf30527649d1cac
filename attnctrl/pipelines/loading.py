"""`load`: a controlled pipeline from an embedded model's name, a folder or a hub id."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download

from ..embedded import MODELS, model_folder
from ..errors import ControlError
from ..given import shown
from .controlled import controlled, pipeline_class
from .facts import INDEX, known_model
from .mixin import ControlledPipeline
from .settings import HUB_OPTIONS


def default_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load(
    model: str | Path = "tiny-sd3",
    pipeline: str | type[Any] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    offload: Literal["none", "model", "sequential"] = "none",
    **options: Any,
) -> ControlledPipeline:
    """A pipeline ready to run.

    model: an embedded model's name (`tiny-flux`), a diffusers folder, or a hub id; `pipeline`: a diffusers class or
    its name ("FluxImg2ImgPipeline"), None for the one that the model names; `device`: None picks the best here;
    `dtype`: None is bfloat16 on CUDA and float32 elsewhere; `offload`: diffusers' CPU offload for GPUs with little
    memory; `options` go to `from_pretrained` (a ControlNet, for one).
    Raises ControlError when there is no such model, or it is none of a supported class.
    """
    place = default_device() if device is None else _device(device)
    kind = _dtype(dtype) or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    if offload not in ("none", "model", "sequential"):
        raise ControlError(f"offload is {shown(offload)}; choose none, model or sequential")
    folder: str | Path = model_folder(str(model)) if str(model) in MODELS else model
    known_model(str(model))
    wanted = _named_in(folder, options) if pipeline is None else pipeline
    stock: Any = pipeline_class(wanted) if isinstance(wanted, str) else wanted
    cls = controlled(stock)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)  # its new name is newer
            pipe = cls.from_pretrained(folder, torch_dtype=kind, **options)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as fault:
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


def _dtype(dtype: Any) -> torch.dtype | None:
    """A precision by its name too; ControlError for what is none."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ControlError(f"dtype is {shown(dtype)}; give torch.float32, torch.bfloat16 or torch.float16")
    return found


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ControlError(f"there is no device {str(device)!r} here; cpu always works") from None
    return place


def _named_in(model: str | Path, options: dict[str, Any]) -> str:
    """The pipeline class that the model's index names."""
    index = Path(model) / INDEX
    if not Path(model).exists():
        try:
            index = Path(hf_hub_download(str(model), INDEX, **{k: options[k] for k in HUB_OPTIONS if k in options}))
        except (OSError, ValueError) as fault:
            reason = " ".join(str(fault).split())[:200]
            raise ControlError(
                f"cannot read which pipeline {str(model)!r} is from the hub ({reason}); download it and give its folder"
            ) from None
    try:
        return str(json.loads(index.read_bytes())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ControlError(f"{model} is no diffusers model: {INDEX} is missing or unreadable there") from None
