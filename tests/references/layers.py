"""Norms, activations and adaLN of the diffusion transformers of diffusers, written out; shared by the references."""

import math

import torch
from torch import Tensor, nn


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last axis, without weights."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()


def rms_norm(x: Tensor, norm: nn.Module | None, square_dtype: torch.dtype | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; `norm` gives eps and weight, None returns x.

    `square_dtype` is the dtype of the factor 1 / sqrt(mean(x^2) + eps) (default: x's own). diffusers' own RMSNorm,
    which SD3.5 uses, works it out in float32 whatever the model's dtype; torch's, which FLUX uses, does not.
    """
    if norm is None:
        return x
    square = x.to(square_dtype or x.dtype).pow(2).mean(dim=-1, keepdim=True)
    out = x * torch.rsqrt(square + norm.eps)
    return out if norm.weight is None else out * norm.weight


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def modulation(linear: nn.Module, temb: Tensor, parts: int) -> list[Tensor]:
    """Linear(SiLU(temb)) cut into `parts` tensors [B, 1, dim]."""
    return list(linear(temb * torch.sigmoid(temb))[:, None].chunk(parts, dim=-1))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift."""
    return layer_norm(x) * (1 + scale) + shift


def feed_forward(ff: nn.Module, x: Tensor) -> Tensor:
    """Linear(gelu(Linear(x)))."""
    return ff.net[2](gelu_tanh(ff.net[0].proj(x)))


def heads(x: Tensor, attn: nn.Module) -> Tensor:
    """[B, S, H*D] as [B, S, H, D]."""
    return x.reshape(x.shape[0], x.shape[1], attn.heads, -1)
