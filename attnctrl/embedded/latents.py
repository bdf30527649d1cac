"""The latent code of the embedded models: 16 principal components of 4x4 pixel patches, scaled by one factor.

Unwhitened components put a picture's structure into few channels, which a small transformer learns first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PATCH = 4
CHANNELS = 16


@dataclass(frozen=True)
class PatchCode:
    """Linear encoder and decoder between pixels in [-1, 1] and latents.

    `mean` [48], `basis` [48, 16] orthonormal, `scale` makes the latents' mean variance 1.
    """

    mean: Tensor
    basis: Tensor
    scale: float

    @classmethod
    def fit(cls, images: np.ndarray) -> PatchCode:
        """From uint8 pictures [n, H, W, 3]."""
        rows = _patches(pixels(images)).movedim(1, -1).reshape(-1, 3 * PATCH * PATCH).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
        basis = vectors.flip(1)[:, :CHANNELS]
        scale = float(values.flip(0)[:CHANNELS].mean() ** -0.5)
        return cls(mean.float(), basis.float().contiguous(), scale)

    def encode(self, images: Tensor) -> Tensor:
        """Pixels [n, 3, H, W] to latents [n, 16, H/4, W/4]."""
        return torch.einsum("nphw,pc->nchw", _patches(images) - self.mean[:, None, None], self.basis) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [n, 16, h, w] to pixels [n, 3, 4h, 4w]."""
        rows = torch.einsum("nchw,pc->nphw", latents / self.scale, self.basis) + self.mean[:, None, None]
        return torch.nn.functional.pixel_shuffle(rows, PATCH)

    def save(self, path: Path) -> None:
        """Write as npz."""
        np.savez(path, mean=self.mean.numpy(), basis=self.basis.numpy(), scale=self.scale)

    @classmethod
    def load(cls, path: Path) -> PatchCode:
        """Read what `save` wrote."""
        with np.load(path) as data:
            return cls(torch.from_numpy(data["mean"]), torch.from_numpy(data["basis"]), float(data["scale"]))


def pixels(images: np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] to float [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).movedim(-1, 1).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Float [n, 3, H, W] in [-1, 1] to uint8 [n, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()


def _patches(images: Tensor) -> Tensor:
    return torch.nn.functional.pixel_unshuffle(images, PATCH)


def pack(latents: Tensor) -> Tensor:
    """Latents [n, c, h, w] to FLUX tokens [n, h/2 * w/2, 4c]."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """FLUX tokens back to latents [n, c, height, width]."""
    n, _, c = tokens.shape
    blocks = tokens.view(n, height // 2, width // 2, c // 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(n, c // 4, height, width)
