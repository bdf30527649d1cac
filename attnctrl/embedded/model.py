"""The parts of tiny-flux, and its folder: a complete FluxPipeline that stock diffusers loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from attnctrl.embedded import text
from attnctrl.embedded.latents import CHANNELS

SAMPLING = {
    "height": 64,
    "width": 64,
    "max_sequence_length": text.TEXT_LENGTH,
    "num_inference_steps": 24,
    "true_cfg_scale": 3.0,
    "negative_prompt": "",
    "guidance_scale": 1.0,
}


@dataclass
class Tokens:
    """Both tokenizers; `encode` gives what FluxPipeline gives its encoders."""

    clip: CLIPTokenizer
    t5: T5Tokenizer

    @classmethod
    def train(cls) -> Tokens:
        """From the caption grammar."""
        captions = text.corpus()
        return cls(text.clip_tokenizer(captions), text.t5_tokenizer(captions))

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP ids and T5 ids, each [n, 24]."""
        form = {"padding": "max_length", "max_length": text.TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
        return self.clip(captions, **form).input_ids, self.t5(captions, **form).input_ids


class TinyFlux(nn.Module):
    """The transformer and both text encoders; the CLIP encoder is taught first and then kept (text_training.py)."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.transformer: Any = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * CHANNELS,
            num_layers=2,
            num_single_layers=6,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=128,
            pooled_projection_dim=64,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
        self.t5: T5EncoderModel = text.t5_encoder(tokens.t5)
        self.clip: CLIPTextModel = text.clip_encoder(tokens.clip)

    def forward(self, x: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor, image_ids: Tensor) -> Tensor:
        """Velocity of image tokens x [n, tokens, 64] at noise level sigma [n], for ids from `Tokens.encode`."""
        states = self.t5(t5_ids)[0]
        pooled = self.clip(clip_ids).pooler_output
        return self.transformer(
            hidden_states=x,
            timestep=sigma,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            txt_ids=torch.zeros(states.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
        )[0]


def image_ids(rows: int, columns: int, top: int = 0, left: int = 0) -> Tensor:
    """FLUX's image positions [rows * columns, 3], from a shifted origin."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(top, top + rows)[:, None]
    ids[..., 2] += torch.arange(left, left + columns)[None]
    return ids.reshape(-1, 3)


def export(folder: Path, net: TinyFlux, tokens: Tokens, vae: AutoencoderKL) -> Path:
    """Write a complete FluxPipeline folder and the sampling defaults beside it."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=256, base_shift=0.5, max_shift=1.15
    )
    pipeline: Any = FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=net.clip,
        tokenizer=tokens.clip,
        text_encoder_2=net.t5,
        tokenizer_2=tokens.t5,
        transformer=net.transformer,
    )
    pipeline.save_pretrained(folder)
    (folder / "attnctrl.json").write_text(json.dumps(SAMPLING, indent=2) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    return folder
