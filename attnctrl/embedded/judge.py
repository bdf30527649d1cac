"""The style judge: a small CNN that names the style of a picture and measures its style parameters.

It never saw the generator's artwork: it learns from other sets (judge_training.py), and its accuracy on true
renders of the generator's sets, stated in judge.json, is its calibration.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attnctrl.embedded.latents import pixels
from attnctrl.embedded.scenes import STYLE_NAMES
from attnctrl.embedded.styles import STYLES

PARAMS = ("hue", "ground", "stroke", "texture", "light")
CIRCULAR = ("hue", "light")
# cosine and sine of the circular parameters, the others as they are
_OUTPUTS = 7
_WIDTHS = (32, 64, 128, 192)
_DEFAULT = Path(__file__).parent / "weights" / "judge.safetensors"


def _step(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


class JudgeNet(nn.Module):
    """Seven convolutions, then average and maximum over places: [n, 3, H, W] in [-1, 1] to two heads' outputs."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = _WIDTHS
        self.body = nn.Sequential(
            *(_step(3, a, 2), _step(a, a, 1), _step(a, b, 2), _step(b, b, 1)),
            *(_step(b, c, 2), _step(c, c, 1), _step(c, d, 2)),
        )
        self.style = nn.Linear(2 * d, len(STYLE_NAMES))
        self.params = nn.Linear(2 * d, len(STYLE_NAMES) * _OUTPUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Style logits [n, 14], parameters as if in each style [n, 14, 7]."""
        features = self.body(x)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return self.style(pooled), self.params(pooled).view(-1, len(STYLE_NAMES), _OUTPUTS)


def encode_params(values: Tensor) -> Tensor:
    """Parameters [n, 5] in PARAMS' order to the net's form [n, 7]."""
    hue, light = 2 * torch.pi * values[:, 0], 2 * torch.pi * values[:, 4]
    return torch.stack([hue.cos(), hue.sin(), *values[:, 1:4].unbind(1), light.cos(), light.sin()], dim=1)


def decode_params(outputs: Tensor) -> Tensor:
    """The net's form [n, 7] to parameters [n, 5], each in [0, 1]."""
    hue = torch.atan2(outputs[:, 1], outputs[:, 0]) / (2 * torch.pi) % 1
    light = torch.atan2(outputs[:, 6], outputs[:, 5]) / (2 * torch.pi) % 1
    return torch.stack([hue, *outputs[:, 2:5].clamp(0, 1).unbind(1), light], dim=1)


class Judge:
    """A trained judge; `calibration` holds its figures on true renders."""

    styles, params = STYLE_NAMES, PARAMS

    def __init__(self, net: JudgeNet, calibration: dict[str, Any]) -> None:
        self.net, self.calibration = net.eval(), calibration

    @classmethod
    def load(cls, path: Path | None = None) -> Judge:
        """From safetensors, with its JSON beside it; without a path, the weights that the package ships."""
        path = path or _DEFAULT
        net = JudgeNet()
        net.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
        return cls(net, json.loads(path.with_suffix(".json").read_text()))

    def named(self, images: np.ndarray, among: Sequence[str] = STYLE_NAMES) -> list[str]:
        """The likeliest style of each uint8 picture [n, H, W, 3], among the given names."""
        columns = [STYLE_NAMES.index(name) for name in among]
        return [among[int(i)] for i in self(images)["style"][:, columns].argmax(1)]

    @torch.no_grad()
    def __call__(self, images: np.ndarray, style: str | None = None) -> dict[str, np.ndarray]:
        """Judge uint8 pictures [n, H, W, 3].

        `style` [n, 14] are probabilities; `params` [n, 5] are the style parameters (PARAMS)
        read in the given style, or in the likeliest one; NaN where that style does not declare them.
        """
        styles, outputs = self.net(pixels(images))
        read_in = styles.argmax(1) if style is None else torch.full((len(images),), STYLE_NAMES.index(style))
        values = decode_params(outputs[torch.arange(len(images)), read_in])
        values[~declared()[read_in]] = torch.nan
        return {"style": styles.softmax(1).numpy(), "params": values.numpy()}


def declared() -> Tensor:
    """Which parameters matter in which style, bool [14, 5]."""
    return torch.tensor([[name in STYLES[style].params for name in PARAMS] for style in STYLE_NAMES])
