"""The image autoencoder (a stock AutoencoderKL): an encoder set to the linear patch code, and a trained decoder.

The encoder needs no training. Its strided convolutions gather each 4x4 patch into 48 channels; large constants beside
them fix the statistics of the last group norm, and a bias of 20 puts SiLU on its straight part, so that the last
convolution is the linear code to about 1e-3. The decoder learns to beat the linear one, on noised codes.
"""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from attnctrl.embedded import dataset
from attnctrl.embedded.latents import CHANNELS, PATCH, PatchCode, pixels

_CONSTANT, _BIAS, _GROUP = 300.0, 20.0, 8


def untrained(code: PatchCode) -> Any:
    """Factor 4, 16 channels; the encoder gives `code`'s latents with no noise, the decoder is new."""
    vae: Any = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    set_encoder(vae, code)
    return vae


def _slot(index: int) -> int:
    """The channel of pixel value `index`: six to a group of eight, whose last two hold the constants."""
    return index // 6 * _GROUP + index % 6


@torch.no_grad()
def set_encoder(vae: Any, code: PatchCode) -> None:
    """Write the linear code into the encoder's weights."""
    encoder = vae.encoder
    for conv in [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]:
        conv.weight.zero_()
        if conv.bias is not None:
            conv.bias.zero_()
    first, second, _ = encoder.down_blocks
    for color in range(3):
        encoder.conv_in.weight[color, color, 1, 1] = 1
        for y in range(2):
            for x in range(2):
                first.downsamplers[0].conv.weight[color * 4 + y * 2 + x, color, y, x] = 1
    for channel in range(12):
        second.resnets[0].conv_shortcut.weight[channel, channel, 0, 0] = 1
        color, inner_y, inner_x = channel // 4, channel // 2 % 2, channel % 2
        for y in range(2):
            for x in range(2):
                pixel = color * PATCH * PATCH + (2 * y + inner_y) * PATCH + 2 * x + inner_x
                second.downsamplers[0].conv.weight[_slot(pixel), channel, y, x] = 1
    bias = second.downsamplers[0].conv.bias
    bias[6::_GROUP], bias[7::_GROUP] = _CONSTANT, -_CONSTANT
    encoder.conv_norm_out.weight.fill_(_CONSTANT / 2)
    encoder.conv_norm_out.bias.fill_(_BIAS)
    encoder.conv_norm_out.bias[7::_GROUP] = _BIAS + _CONSTANT
    weight = encoder.conv_out.weight[:CHANNELS, :, 1, 1]
    scaled = (code.basis * code.scale).T
    for pixel in range(3 * PATCH * PATCH):
        weight[:, _slot(pixel)] += scaled[:, pixel]
        # the mean that the norm took from the group is read back from its two constants
        group = pixel // 6 * _GROUP
        weight[:, group + 6] -= scaled[:, pixel] / 2
        weight[:, group + 7] -= scaled[:, pixel] / 2
    activation = torch.full((8 * _GROUP,), _BIAS)
    activation[6::_GROUP] += _CONSTANT
    encoder.conv_out.bias[:CHANNELS] = -(weight @ activation) - scaled @ code.mean
    encoder.conv_out.bias[CHANNELS:] = -30


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """L1 + L2 + half the L1 of horizontal and vertical differences, over pixels in [-1, 1]."""
    error = output - target
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * gradient


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1], from the mean error over all pictures."""
    return float(10 * torch.log10(4 / (output.clamp(-1, 1) - target).square().mean()))


@torch.no_grad()
def measure(vae: Any, code: PatchCode, images: np.ndarray) -> dict[str, float]:
    """PSNR of encoding and decoding uint8 pictures [n, H, W, 3], of the linear code, and the latents' largest gap."""
    x = pixels(images)
    latents = vae.encode(x).latent_dist.mode()
    wanted = code.encode(x)
    return {
        "psnr": psnr(vae.decode(latents).sample, x),
        "psnr_linear": psnr(code.decode(wanted), x),
        "latent_gap": float((latents - wanted).abs().max()),
        "latent_std": float(wanted.std()),
    }


def train(
    folder: Path,
    data: Path,
    cache: Path,
    code: PatchCode,
    minutes: float = 20,
    batch: int = 48,
    threads: int = 1,
    seed: int = 0,
    peak: float = 2e-3,
) -> Any:
    """Train the decoder for so many minutes: crops of 32 px first, whole pictures of all shapes for the last third.

    Where `folder`/vae exists it goes on from there; give it a lower `peak` rate then.

    Writes the averaged weights to `folder`/vae every two minutes and a line to `folder`/vae.jsonl.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = untrained(code)
    if (folder / "vae" / "config.json").exists():
        vae.load_state_dict(AutoencoderKL.from_pretrained(folder / "vae").state_dict())
    vae.to(memory_format=torch.channels_last)
    decoder, average = vae.decoder, copy.deepcopy(vae.decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    parts = [pictures for pictures, _ in dataset.load(data).values()]
    held = dataset.held_pictures(cache, 128)
    begin = saved = time.perf_counter()
    step, done = 0, 0.0
    while done < 1:
        done = min(1.0, (time.perf_counter() - begin) / (60 * minutes))
        whole = done > 0.67
        pictures = parts[rng.choice(len(parts), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])] if whole else parts[0]
        rows = np.sort(rng.choice(len(pictures), batch // 4 if whole else batch, replace=False))
        chosen = pictures[rows]
        if not whole:
            y, x = rng.integers(0, 9, 2) * 4
            chosen = chosen[:, y : y + 32, x : x + 32]
        target = pixels(chosen)
        latents = code.encode(target)
        latents = latents + 0.1 * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        loss = loss_of(decoder(latents.to(memory_format=torch.channels_last)), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        warm = min(1.0, (step + 1) / 100)
        optimizer.param_groups[0]["lr"] = peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        with torch.no_grad():
            weight = 1 - min(0.998, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), weight)
        if time.perf_counter() - saved > 120 or done >= 1:
            saved = time.perf_counter()
            finished = copy.deepcopy(vae)
            finished.decoder.load_state_dict(average.state_dict())
            finished.to(memory_format=torch.contiguous_format).save_pretrained(folder / "vae")
            record = {"step": step, "minutes": round((saved - begin) / 60, 2), "loss": float(loss.detach())}
            with (folder / "vae.jsonl").open("a") as log:
                log.write(json.dumps({**record, **measure(finished, code, held)}) + "\n")
    return finished
