"""Image encoders whose weights the user has: DINO's vision transformers and Contrastive Style Descriptors."""

from __future__ import annotations

import json
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ControlError

BATCH = 32
DINO_KINDS = "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# OpenAI's names of the parts of CLIP's visual tower, and transformers'
_NAMES = {
    "conv1.": "embeddings.patch_embedding.",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


@dataclass(frozen=True)
class Preprocessing:
    """Pictures to an encoder's input: resized, cropped to the centre, normalised.

    `size`: pixels of the shorter side, or (height, width); `crop`: (height, width).
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    mean: Sequence[float]
    std: Sequence[float]
    resample: int = Image.Resampling.BICUBIC

    @classmethod
    def read(cls, file: Path) -> Preprocessing:
        """Of a preprocessor_config.json; ImageNet's mean and deviation where it names none."""
        known = json.loads(file.read_bytes())
        size, crop = known.get("size", 224), None
        if known.get("do_center_crop"):
            crop = _sides(known.get("crop_size", 224))
        if isinstance(size, dict) and "shortest_edge" in size:
            size = size["shortest_edge"]
        elif isinstance(size, dict) or crop is None:
            size = _sides(size)
        mean, std = (known.get(f"image_{name}", usual) for name, usual in zip(("mean", "std"), _IMAGENET, strict=True))
        return cls(size, crop, mean, std, known.get("resample", Image.Resampling.BICUBIC))

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float32 [n, 3, height, width]."""
        arrays = np.stack([np.asarray(self._squared(picture.convert("RGB"))) for picture in pictures])
        values = (arrays / 255 - np.asarray(self.mean)) / np.asarray(self.std)
        return torch.from_numpy(values).permute(0, 3, 1, 2).float()

    def _squared(self, picture: Image.Image) -> Image.Image:
        if isinstance(self.size, int):
            short = min(picture.size)
            width, height = (self.size * side // short for side in picture.size)
        else:
            height, width = self.size
        picture = picture.resize((width, height), Image.Resampling(self.resample))
        if self.crop is None:
            return picture
        left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
        return picture.crop((left, top, left + self.crop[1], top + self.crop[0]))


class Dino:
    """A DINO vision transformer in transformers' folder format, by its CLS token (Caron et al. 2021).

    Raises ControlError for a folder that holds another model or not all of it.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModel

        with loading("DINO", folder):
            kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
            if kind not in DINO_KINDS:
                raise ControlError(f"{folder} holds another kind of model than DINO ({kind}); use facebook/dino-vitb8")
            self.preprocess = Preprocessing.read(folder / "preprocessor_config.json")
            model, info = AutoModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            # the released DINO folders have no pooler, and the CLS token needs none
            missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
            if lacking := [*missing, *info["mismatched_keys"]]:
                raise ControlError(
                    f"the weights in {folder} lack {len(lacking)} of DINO's, such as {lacking[0]}; download them anew"
                )
        self.model, self.device = model.eval().to(device), device

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float64 [n, width]."""
        return in_batches(lambda pixels: self.model(pixel_values=pixels).last_hidden_state[:, 0], self, pictures)


class Csd:
    """Contrastive Style Descriptors of a released checkpoint (Somepalli et al. 2024, arXiv 2404.01292).

    A CLIP visual tower, its pooled CLS token projected by `last_layer_style`.

    Raises ControlError for a file that holds no CSD weights or not all of them.
    """

    def __init__(self, file: Path, device: str) -> None:
        with loading("CSD", file):
            state = _checkpoint(file)
            if "last_layer_style" not in state:
                raise ControlError(f"{file} holds no CSD weights (no last_layer_style); use tomg-group-umd/CSD-ViT-L")
            self.head = state.pop("last_layer_style").float().to(device)
            tower = {name: value for name, value in state.items() if not name.startswith("last_layer_content")}
            model = _tower({name.removeprefix("backbone."): value for name, value in tower.items()})
            side = model.config.image_size
        self.preprocess = Preprocessing(side, (side, side), *_CLIP)
        self.model, self.device = model.eval().to(device), device

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float64 [n, width]; not of unit length."""
        return in_batches(lambda pixels: self.model(pixel_values=pixels).pooler_output @ self.head, self, pictures)


@torch.no_grad()
def in_batches(encode: Callable[[Tensor], Tensor], of: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """What `encode` gives of the pictures as `of.preprocess` makes them on `of.device`: float64 [n, width]."""
    batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    return torch.cat([encode(of.preprocess(batch).to(of.device)).cpu().double() for batch in batches])


@contextmanager
def loading(what: str, where: Path) -> Iterator[None]:
    """Any fault in it as a ControlError."""
    try:
        yield
    except ControlError:
        raise
    except Exception as fault:
        said = " ".join(f"{type(fault).__name__}: {fault}".split())[:300]
        raise ControlError(f"cannot load {what} from {where}, download it anew if it is damaged: {said}") from fault


def _checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors by name; of a training checkpoint those of its model."""
    if file.suffix == ".safetensors":
        state: dict[str, Any] = load_file(file)
    else:
        # the released file also holds its optimiser, command line and loss: mapped, not read, and harmless types
        scalar, double = np.float64().__reduce__()[0], np.dtype("float64")
        harmless: list[Any] = [Namespace, np.dtype, type(double), scalar, (scalar, "numpy.core.multiarray.scalar")]
        with torch.serialization.safe_globals(harmless):
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        state = held.get("model_state_dict", held)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _tower(state: dict[str, Tensor]) -> Any:
    """CLIP's visual tower under OpenAI's names as transformers' model, every weight accounted for."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    width, _, _, patch = state["conv1.weight"].shape
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        num_hidden_layers=len(layers),
        num_attention_heads=width // 64,
        image_size=patch * isqrt(len(state["positional_embedding"]) - 1),
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModel(config)
    # earlier transformers 5 keep the tower one level deeper
    getattr(model, "vision_model", model).load_state_dict(_renamed(state))
    return model


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        stem, joint, ending = name.partition("in_proj_")
        if joint:
            renamed |= {f"{stem}{part}_proj.{ending}": third for part, third in zip("qkv", value.chunk(3), strict=True)}
        else:
            renamed[name] = value
    return renamed


def _sides(size: Any) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
