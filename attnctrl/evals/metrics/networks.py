"""Metrics by published networks, whose weights the user has: CLIP, DINO, CSD and DreamSim.

Weights are looked for at what stands after the colon, then in the folder that ATTNCTRL_WEIGHTS names, as `clip`,
`dino`, `csd` and `dreamsim`. Nothing is downloaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import ControlError
from ..objectives import Models
from ..scorers import WEIGHTS, Clip
from .encoders import Csd, Dino, in_batches, loading
from .metric import DrawnSet, mean_of_pairs

_REPOSITORIES = {
    "clip": "openai/clip-vit-large-patch14",
    "dino": "facebook/dino-vitb8",
    "csd": "tomg-group-umd/CSD-ViT-L",
}
_CSD_FILES = "pytorch_model.bin", "checkpoint.pth", "model.safetensors"
_HUB = "facebookresearch_dino_main/hubconf.py", "checkpoints/dino_vitbase16_pretrain.pth"
# what dreamsim 0.2 reads of each of its models, the adapter first; what is missing it would fetch
_DREAMSIM = {
    "ensemble": (
        "ensemble_lora", "dino_vitb16_pretrain.pth", "open_clip_vitb16_pretrain.pth.tar",
        "clip_vitb16_pretrain.pth.tar", *_HUB,
    ),
    "dino_vitb16": ("dino_vitb16_single_lora", "dino_vitb16_pretrain.pth", *_HUB),
    "open_clip_vitb32": ("open_clip_vitb32_single_lora", "open_clip_vitb32_pretrain.pth.tar"),
    "clip_vitb32": ("clip_vitb32_single_lora", "clip_vitb32_pretrain.pth.tar"),
}  # fmt: skip

Encode = Callable[[Sequence[Image.Image]], Tensor]
"""Pictures to embeddings [n, width]."""


def make(name: str, argument: str, models: Models) -> Callable[[DrawnSet], float | None]:
    """`clip-t`, `clip-i`, `dino`, `csd` or `dreamsim`; ControlError for weights that are not there or do not fit."""
    path = _found(name, argument)
    if name == "clip-t":
        clip = models.get(Clip, path, models.device)
        features = models.get(Features, clip.images)
        return lambda drawn: alignment(features(drawn.pictures), clip.texts(drawn.texts)) if drawn.pictures else None
    encode: Encode
    if name == "clip-i":
        encode = models.get(Clip, path, models.device).images
    else:
        loads: dict[str, Callable[..., Encode]] = {"dino": Dino, "csd": Csd, "dreamsim": DreamSim}
        encode = models.get(loads[name], path, models.device)
    shared = models.get(Features, encode)
    return lambda drawn: consistency(shared, drawn)


class Features:
    """An encoder's embeddings at unit length, float64 [n, width]; the last pictures' are kept for the next metric."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        self._last: tuple[Sequence[Image.Image], np.ndarray] | None = None

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        if self._last is None or self._last[0] is not pictures:
            self._last = (pictures, self.of(pictures))
        return self._last[1]

    def of(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """The same, not kept."""
        return _unit(self.encode(pictures))


def alignment(features: np.ndarray, texts: Tensor) -> float:
    """Mean cosine of pictures [n, width], of unit length, and their texts [n, width]."""
    return float((features * _unit(texts)).sum(1).mean())


def consistency(features: Features, drawn: DrawnSet) -> float | None:
    """Mean cosine over all pairs of pictures, or of each picture with the reference; None where there is no pair."""
    if drawn.reference is not None and drawn.pictures:
        return float((features(drawn.pictures) @ features.of([drawn.reference])[0]).mean())
    return mean_of_pairs(features(drawn.pictures)) if len(drawn.pictures) > 1 else None


class DreamSim:
    """DreamSim (Fu et al. 2023) by the package `dreamsim`, whose distance is 1 - cosine of these embeddings.

    The folder is the package's cache; its ensemble is taken where it is there, else one of its single models.

    Raises ControlError where the package or a file is missing.
    """

    def __init__(self, folder: Path, device: str) -> None:
        kind = _dreamsim_kind(folder)
        try:
            from dreamsim import dreamsim
        except ImportError as fault:
            raise ControlError(f"dreamsim needs {fault.name or fault}: pip install dreamsim torchvision") from fault
        with loading("DreamSim", folder), _offline(), redirect_stdout(sys.stderr):
            self.model, self._one = dreamsim(pretrained=True, device=device, cache_dir=str(folder), dreamsim_type=kind)
        self.device = device

    def preprocess(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, 3, 224, 224] from 0 to 1, by the package."""
        return torch.cat([self._one(picture) for picture in pictures])

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float64 [n, width]."""
        return in_batches(lambda pixels: self.model.embed(pixels).reshape(len(pixels), -1), self, pictures)


def _dreamsim_kind(folder: Path) -> str:
    kind = next((kind for kind, (adapter, *_) in _DREAMSIM.items() if (folder / adapter).exists()), "ensemble")
    if lacking := [name for name in _DREAMSIM[kind] if not (folder / name).exists()]:
        raise ControlError(f"{folder} lacks {', '.join(lacking)} of DreamSim's {kind}; {_filling('FOLDER')}")
    return kind


def _filling(folder: str) -> str:
    call = f"from dreamsim import dreamsim; dreamsim(device='cpu', cache_dir='{folder}')"
    return f'pip install dreamsim torchvision and fill it once, with a network: python -c "{call}"'


@contextmanager
def _offline() -> Iterator[None]:
    """torch.hub as it was afterwards, and without downloads meanwhile."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise ControlError(f"dreamsim wants to download {url}; this metric only reads local files, as of dreamsim 0.2")

    hub: Any = torch.hub
    folder, fetch = hub.get_dir(), hub.download_url_to_file
    hub.download_url_to_file = refuse
    try:
        yield
    finally:
        hub.download_url_to_file = fetch
        hub.set_dir(folder)


def _found(name: str, argument: str) -> Path:
    """Where the weights are; ControlError that says what to fetch."""
    family, root = name.partition("-")[0], os.environ.get(WEIGHTS)
    path = Path(argument).expanduser() if argument else Path(root) / family if root else None
    if path is None or not path.exists():
        looked = f"not at {path}" if path else f"and {WEIGHTS} is not set"
        home = f"FOLDER/{family}"
        fetch = _filling(home) if family == "dreamsim" else f"hf download {_REPOSITORIES[family]} --local-dir {home}"
        raise ControlError(
            f"{name} needs the weights of {_REPOSITORIES.get(family, 'DreamSim')}, {looked}: {fetch}; then set "
            f"{WEIGHTS}=FOLDER, or write {name}:{home}"
        )
    if family == "csd" and path.is_dir():
        files = [path / file for file in _CSD_FILES if (path / file).exists()]
        if not files:
            raise ControlError(f"{path} has none of {', '.join(_CSD_FILES)}; download {_REPOSITORIES['csd']} there")
        return files[0]
    return path


def _unit(features: Tensor) -> np.ndarray:
    values: np.ndarray = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    return values
