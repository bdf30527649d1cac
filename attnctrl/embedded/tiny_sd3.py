"""tiny-sd3: an SD3Transformer2DModel in SD3.5's form (queries and keys normalised) with its text encoders."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnctrl.embedded import text
from attnctrl.embedded.latents import CHANNELS
from attnctrl.embedded.model import TinyModel, Tokens

TABLE = 48
"""Rows and columns of the position table: six times the grid of 64 px."""
SHIFT = 2.0
LAYERS = 9


class TinySD3(TinyModel):
    """9 joint blocks, 4 heads x 32; the text is 24 CLIP tokens (two encoders side by side) and 24 T5 tokens.

    The table of positions has unit spacing; in its stock form, made for a grid of `sample_size`, neighbours
    of a 64 px picture would differ by a sixth.
    """

    name = "tiny-sd3"
    guidance = {"guidance_scale": 3.0}  # noqa: RUF012

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.transformer: Any = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=CHANNELS,
            num_layers=LAYERS,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=128,
            caption_projection_dim=128,
            pooled_projection_dim=128,
            out_channels=CHANNELS,
            pos_embed_max_size=TABLE,
            qk_norm="rms_norm",
        )
        table: Any = get_2d_sincos_pos_embed(128, TABLE, base_size=TABLE, output_type="pt")
        self.transformer.pos_embed.pos_embed.copy_(table.float()[None])
        self.t5 = text.t5_encoder(tokens.t5)
        self.clip = text.clip_projected(tokens.clip)
        self.clip_2 = text.clip_projected(tokens.clip)

    def clips(self) -> list[PreTrainedModel]:
        """Both CLIP encoders."""
        return [self.clip, self.clip_2]

    def binding_block(self) -> nn.Module:
        """The third of nine."""
        block: nn.Module = self.transformer.transformer_blocks[LAYERS // 3 - 1]
        return block

    def forward(
        self, latents: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor, origin: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Velocity of latents [n, 16, h, w]; the crop of the position table moves by `origin` from its centre."""
        with torch.no_grad():
            spoken = [encoder(clip_ids, output_hidden_states=True) for encoder in self.clips()]
            words = torch.cat([out.hidden_states[-2] for out in spoken], -1)
            states = torch.cat([words, self.t5(t5_ids)[0]], 1)
        table = self.transformer.pos_embed.pos_embed
        if origin != (0, 0):
            grid = table.view(1, TABLE, TABLE, -1).roll((-origin[0], -origin[1]), (1, 2))
            self.transformer.pos_embed.pos_embed = grid.reshape(table.shape)
        velocity = self.transformer(
            hidden_states=latents,
            timestep=1000 * sigma,
            encoder_hidden_states=states,
            pooled_projections=torch.cat([out.text_embeds for out in spoken], -1),
            return_dict=False,
        )[0]
        self.transformer.pos_embed.pos_embed = table
        return velocity

    def shift(self, tokens: int) -> float:
        """A constant."""
        return SHIFT

    def pipeline(self, tokens: Tokens, vae: AutoencoderKL) -> StableDiffusion3Pipeline:
        """A StableDiffusion3Pipeline."""
        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            vae=vae,
            text_encoder=self.clip,
            tokenizer=tokens.clip,
            text_encoder_2=self.clip_2,
            tokenizer_2=tokens.clip,
            text_encoder_3=self.t5,
            tokenizer_3=tokens.t5,
        )
