"""Objectives of published scorers, whose weights the user has: CLIP, PickScore and LAION's aesthetic score.

Weights are looked for at what stands after the colon, then in the folder that ATTNCTRL_WEIGHTS names, as `clip`,
`pickscore` and `aesthetic.pth` or `aesthetic.safetensors`. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ControlError
from .objectives import Models, Score

WEIGHTS = "ATTNCTRL_WEIGHTS"
_SOURCES = {
    "clip": "openai/clip-vit-large-patch14",
    "pickscore": "yuvalkirstain/PickScore_v1",
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor",
}
_TOKENIZER = "tokenizer.json", "vocab.json"
_BATCH = 32


def make(name: str, argument: str, models: Models) -> Score:
    """The objective of a name in objectives.KINDS; ControlError for weights that are not there or do not fit."""
    if name == "aesthetic":
        return _aesthetic(_found("aesthetic", argument), models)
    folder = _found("clip", "") if name == "text" else _found(name, argument)
    clip = models.get(Clip, folder, models.device)
    scale = clip.scale if name == "pickscore" else 100.0

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        texts = clip.texts([argument] * len(images) if name == "text" else prompts)
        values: list[float] = (scale * (clip.images(images) * texts).sum(1)).tolist()
        return values

    return score


class Clip:
    """A CLIP model in transformers' folder format: unit embeddings of pictures and texts, and its logit scale.

    Raises ControlError for a folder that holds no CLIP model or not all of it.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.model, self.preprocess, self.tokenizer = _loaded(folder)
        self.model.to(device)
        self.device, self.scale = device, self.model.logit_scale.exp().item()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """[n, width]; the processor crops a picture to its central square."""
        parts = []
        for start in range(0, len(images), _BATCH):
            pixels = self.preprocess(images=list(images[start : start + _BATCH]), return_tensors="pt").pixel_values
            pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            parts.append(self.model.visual_projection(pooled).float().cpu())
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[n, width]; each text is read once, as far as the model's length goes."""
        different = list(dict.fromkeys(texts))
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(different, padding=True, truncation=True, max_length=length, return_tensors="pt")
        pooled = self.model.text_model(**tokens.to(self.device)).pooler_output
        embedded = torch.nn.functional.normalize(self.model.text_projection(pooled).float().cpu(), dim=1)
        return embedded[[different.index(text) for text in texts]]


def _loaded(folder: Path) -> tuple[Any, Any, Any]:
    import transformers
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    # PIL's resampling, whether torchvision is installed or not; earlier transformers 5 call it by the plain name
    processor = getattr(transformers, "CLIPImageProcessorPil", CLIPImageProcessor)
    try:
        if json.loads((folder / "config.json").read_bytes()).get("model_type") != "clip":
            raise ControlError(f"{folder} is another kind of model than CLIP")
        model, info = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if lacking := [*info["missing_keys"], *info["mismatched_keys"]]:
            raise ControlError(f"the weights in {folder} lack {len(lacking)} of CLIP's, such as {lacking[0]}")
        if not any((folder / name).exists() for name in _TOKENIZER):
            raise ControlError(
                f"{folder} has no tokenizer; copy {' or '.join(_TOKENIZER)} (with merges.txt) there "
                "from laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
            )
        size = model.config.vision_config.image_size
        standard = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        own = (folder / "preprocessor_config.json").exists()
        preprocess = processor.from_pretrained(folder) if own else processor(**standard)
        return model.eval(), preprocess, CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as fault:
        if isinstance(fault, ControlError):
            raise
        raise ControlError(f"cannot load CLIP from {folder}: {' '.join(str(fault).split())[:200]}") from fault


def _aesthetic(file: Path, models: Models) -> Score:
    weight, bias = models.get(read_head, file)
    clip = models.get(Clip, _found("clip", ""), models.device)
    width = clip.model.config.projection_dim
    if len(weight) != width:
        raise ControlError(
            f"{file} reads embeddings of width {len(weight)}, but the CLIP model gives {width}; "
            f"LAION's heads need {_SOURCES['clip']}"
        )

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        values: list[float] = (clip.images(images).double() @ weight + bias).tolist()
        return values

    return score


def read_head(file: Path) -> tuple[Tensor, float]:
    """A LAION head, one linear layer or five without activations between them, as one: weight [width], and bias.

    Raises ControlError for a file that is no such head; the `relu` heads, whose shapes are the same, by their name.
    """
    if "relu" in file.name.lower():
        raise ControlError(f"{file.name} has ReLUs between its layers; use a linear head: {_SOURCES['aesthetic']}")
    try:
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        names = [name for name in state if name.endswith("weight")]
        first, *others = sorted(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
        weight, bias = state[first].double(), state[f"{first[:-6]}bias"].double()
        for name in others:
            layer = state[name].double()
            weight, bias = layer @ weight, layer @ bias + state[f"{name[:-6]}bias"].double()
        if weight.ndim != 2 or len(weight) != 1:
            raise ValueError(f"its layers give {list(weight.shape)}")
    except Exception as fault:
        raise ControlError(f"cannot read {file} as an aesthetic head: {' '.join(str(fault).split())[:200]}") from fault
    return weight[0], float(bias)


def _found(name: str, argument: str) -> Path:
    """Where the weights are; ControlError that says what to fetch."""
    root = Path(os.environ.get(WEIGHTS) or ".")
    usual = [root / f"{name}{ending}" for ending in ((".safetensors", ".pth") if name == "aesthetic" else ("",))]
    wanted = [Path(argument).expanduser()] if argument else usual if os.environ.get(WEIGHTS) else []
    for path in wanted:
        if path.exists():
            return path
    looked = f"not at {' or '.join(map(str, wanted))}" if wanted else f"and {WEIGHTS} is not set"
    fetch = "" if name == "aesthetic" else f" (hf download {_SOURCES[name]} --local-dir FOLDER/{name})"
    raise ControlError(
        f"{name} needs the weights of {_SOURCES[name]}, {looked}: download them{fetch} and set {WEIGHTS}=FOLDER, "
        f"or write {name}:{'FILE' if name == 'aesthetic' else f'FOLDER/{name}'}"
    )
