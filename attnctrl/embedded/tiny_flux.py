"""tiny-flux: a FluxTransformer2DModel of 3.5M parameters with its text encoders."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnctrl.embedded import text
from attnctrl.embedded.latents import CHANNELS, pack, unpack
from attnctrl.embedded.model import TinyModel, Tokens

BASE, MOST = (16, 0.5), (256, 1.15)
"""Image tokens and log shift at both ends of FLUX's dynamic schedule."""


class TinyFlux(TinyModel):
    """3 double and 6 single blocks, 4 heads x 32; no guidance input: `true_cfg_scale` guides."""

    name = "tiny-flux"
    guidance = {"true_cfg_scale": 3.0, "negative_prompt": "", "guidance_scale": 1.0}  # noqa: RUF012

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.transformer: Any = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * CHANNELS,
            num_layers=3,
            num_single_layers=6,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=128,
            pooled_projection_dim=64,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
        self.t5 = text.t5_encoder(tokens.t5)
        self.clip = text.clip_encoder(tokens.clip)

    def clips(self) -> list[PreTrainedModel]:
        """The one CLIP encoder; only its pooled text is used."""
        return [self.clip]

    def binding_block(self) -> nn.Module:
        """The last double block of three."""
        block: nn.Module = self.transformer.transformer_blocks[-1]
        return block

    def forward(
        self, latents: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor, origin: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Velocity of latents [n, 16, h, w]; image ids start at `origin`."""
        height, width = latents.shape[2:]
        with torch.no_grad():
            states, pooled = self.t5(t5_ids)[0], self.clip(clip_ids).pooler_output
        tokens = self.transformer(
            hidden_states=pack(latents),
            timestep=sigma,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            txt_ids=torch.zeros(states.shape[1], 3),
            img_ids=image_ids(height // 2, width // 2, *origin),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def shift(self, tokens: int) -> float:
        """FLUX's dynamic shift, exponential in the number of tokens."""
        slope = (MOST[1] - BASE[1]) / (MOST[0] - BASE[0])
        return math.exp(BASE[1] + slope * (tokens - BASE[0]))

    def pipeline(self, tokens: Tokens, vae: AutoencoderKL) -> FluxPipeline:
        """A FluxPipeline."""
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=BASE[0],
            max_image_seq_len=MOST[0],
            base_shift=BASE[1],
            max_shift=MOST[1],
        )
        return FluxPipeline(
            scheduler=scheduler,
            vae=vae,
            text_encoder=self.clip,
            tokenizer=tokens.clip,
            text_encoder_2=self.t5,
            tokenizer_2=tokens.t5,
            transformer=self.transformer,
        )


def image_ids(rows: int, columns: int, top: int = 0, left: int = 0) -> Tensor:
    """FLUX's image positions [rows * columns, 3], from a shifted origin."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(top, top + rows)[:, None]
    ids[..., 2] += torch.arange(left, left + columns)[None]
    return ids.reshape(-1, 3)
