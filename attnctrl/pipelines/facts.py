"""What a model's folder says of it before anything is loaded: sizes, steps, words, and what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..embedded import MODELS, model_folder
from ..errors import ControlError
from ..layout import Site
from ..processors.sites import configured_sites

INDEX = "model_index.json"
LARGER = 16
"""A side may be so many times the model's own: beyond it there is no picture, only hours."""
LIVE = 24
"""Features of a token that are alive at once, in widths of the model: queries, keys, values, the wide layer."""
DECODED = 6
"""The same of a pixel in the autoencoder, in its first width."""


@dataclass(frozen=True)
class Facts:
    """What is known of a model. `unit`: pixels of a token's side; `side`: its own size; `most`: the largest side."""

    model: str
    architecture: str
    unit: int
    side: int
    most: int
    width: int
    pixel_width: int
    steps: int | None
    guided: bool
    sites: tuple[Site, ...]

    def check_size(self, height: int | None, width: int | None) -> None:
        """Raise ControlError for a side that is no whole number of tokens, or beyond the model."""
        for name, value in (("height", height), ("width", width)):
            if value is None:
                continue
            if value > self.most:
                raise ControlError(f"{name} {value} px is too much for {self.model}: at most {self.most} px a side")
            if value % self.unit:
                near = max(self.unit, round(value / self.unit) * self.unit)
                raise ControlError(
                    f"{name} {value} is no multiple of {self.unit} px, this model's token; {near} is the nearest"
                )

    def check_guidance(self, true_cfg_scale: float | None) -> None:
        """Raise ControlError for FLUX's second guidance where there is but one."""
        if self.architecture == "sd3" and true_cfg_scale is not None:
            raise ControlError(f"{self.model} has no true_cfg_scale; its classifier-free guidance is guidance_scale")

    def memory(self, pictures: int, height: int | None, width: int | None) -> int:
        """About how many bytes a batch takes beside the weights, in float32."""
        pixels = (height or self.side) * (width or self.side)
        tokens = pixels // self.unit**2
        rows = pictures * (2 if self.guided else 1)
        return 4 * (rows * tokens * self.width * LIVE + pictures * pixels * self.pixel_width * DECODED)


def known_model(model: str) -> None:
    """Raise ControlError for a name that is no embedded model, no folder and no hub id."""
    try:
        there = bool(model) and Path(model).is_dir()
    except (OSError, ValueError):
        there = False
    if there and not _indexed(Path(model)):
        raise ControlError(f"{model} is no diffusers model: {INDEX} is missing or unreadable there")
    if model not in MODELS and not there and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise ControlError(
            f"there is no model {model[:80]!r}; give {' or '.join(MODELS)}, a diffusers folder, "
            "or a hub id such as black-forest-labs/FLUX.1-dev"
        )


def _indexed(folder: Path) -> bool:
    """Whether a folder's index names a pipeline."""
    try:
        return "_class_name" in json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def facts_of(model: str) -> Facts | None:
    """The facts of a local model, from its folder; None for what is on the hub, or does not say."""
    folder = model_folder(model) if model in MODELS else Path(model)
    try:
        index, transformer, vae = (
            json.loads((folder / name).read_bytes()) for name in (INDEX, "transformer/config.json", "vae/config.json")
        )
        own = json.loads(path.read_bytes()) if (path := folder / "attnctrl.json").is_file() else {}
        return _facts(model, str(index["_class_name"]), transformer, vae, own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def facts_in(pipe: Any) -> Facts | None:
    """The same of a pipeline that is loaded."""
    name = pipe.stock.__name__
    try:
        return _facts(name, name, pipe.transformer.config, pipe.vae.config, pipe.settings.given())
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def model_of(pipe: Any) -> str:
    """The name of the embedded model that a pipeline is, or where it came from."""
    home = str(getattr(pipe, "name_or_path", ""))
    return next((name for name in MODELS if home == str(model_folder(name))), home)


def _facts(
    model: str, pipeline: str, transformer: Mapping[str, Any], vae: Mapping[str, Any], own: Mapping[str, Any]
) -> Facts:
    shrunk = 2 ** (len(vae["block_out_channels"]) - 1)
    rotary = "Flux" in pipeline
    unit = shrunk * (2 if rotary else int(transformer["patch_size"]))
    side = int(own.get("height") or (1024 if rotary else int(transformer["sample_size"]) * shrunk))
    table = transformer.get("pos_embed_max_size")
    most = LARGER * side if rotary or not table else int(table) * unit
    wide = int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"])
    guided = float(own.get("true_cfg_scale" if rotary else "guidance_scale", 1 if rotary else 7)) > 1
    sites, steps = configured_sites(transformer, rotary), own.get("num_inference_steps")
    return Facts(
        model,
        "flux" if rotary else "sd3",
        unit,
        side,
        most,
        wide,
        int(vae["block_out_channels"][0]),
        steps,
        guided,
        sites,
    )
