"""Tiny random pipelines, built in memory: the real classes, no files, no training."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_parts(
    cls: type = CLIPTextModel, width: int = 16, layers: int = 1, seed: int = 1
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A letter tokenizer and a random CLIP text encoder of class `cls`; its projection is as wide as it is."""
    pieces = [*LETTERS, *(c + "</w>" for c in LETTERS), ",</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=32)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=width,
        bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1,
    )
    return tokenizer, cls(config)


def t5_parts() -> tuple[T5Tokenizer, T5EncoderModel]:
    """A letter tokenizer and a random T5 encoder of width 16."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS + ",.")]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)
    torch.manual_seed(2)
    config = T5Config(vocab_size=len(vocab), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def tiny_vae(channels: int = 4) -> AutoencoderKL:
    """A random f4 autoencoder."""
    torch.manual_seed(3)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.8,
    )


def tiny_transformer(guidance: bool = False, double: int = 2, single: int = 3) -> FluxTransformer2DModel:
    """A random FLUX transformer: 4 heads of width 16, with weights large enough that positions matter."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                p.mul_(1.5)
            elif p.ndim > 1:
                p.mul_(1.7)
    return model.eval()


def tiny_parts(guidance: bool = False) -> dict[str, object]:
    """Components of a FLUX pipeline with f4 latents of 4 channels: 64 px is 8 x 8 tokens."""
    tokenizer, text_encoder = clip_parts()
    tokenizer_2, text_encoder_2 = t5_parts()
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=256, base_shift=0.5, max_shift=1.15
    )
    return {
        "scheduler": scheduler,
        "vae": tiny_vae().eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2.eval(),
        "tokenizer_2": tokenizer_2,
        "transformer": tiny_transformer(guidance),
    }


def tiny_flux(guidance: bool = False, cls: type = FluxPipeline) -> FluxPipeline:
    """A random FLUX pipeline of class `cls`, silent."""
    pipe = cls(**tiny_parts(guidance))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3_transformer(qk_norm: str | None = None, dual: tuple[int, ...] = ()) -> SD3Transformer2DModel:
    """A random SD3 transformer: 3 blocks, 4 heads of width 16, with weights large enough that positions matter.

    `qk_norm="rms_norm"` and `dual` (blocks with an image-only attention of their own) are SD3.5's. Positions are a
    third of a token apart, as in SD3: a grid of 8 x 8 tokens lies in the middle of a table of 24 x 24.
    """
    torch.manual_seed(4)
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=64,
        pooled_projection_dim=16,
        out_channels=16,
        pos_embed_max_size=24,
        dual_attention_layers=dual,
        qk_norm=qk_norm,
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                p.mul_(1 + torch.rand_like(p))
            elif any(part in name for part in ("to_q", "to_k", "add_q", "add_k", "to_out", "to_add_out")):
                p.mul_(3.0)  # without qk-norm attention would be almost uniform
            elif p.ndim > 1:
                p.mul_(1.7)
    return model.eval()


def tiny_sd3_parts(qk_norm: str | None = None, dual: tuple[int, ...] = ()) -> dict[str, object]:
    """Components of an SD3 pipeline with f4 latents of 16 channels: 64 px is 8 x 8 tokens.

    The text is 32 CLIP tokens (two encoders of width 8, side by side) and then T5's, all of width 16.
    """
    tokenizer, text_encoder = clip_parts(CLIPTextModelWithProjection, width=8, layers=2)
    tokenizer_2, text_encoder_2 = clip_parts(CLIPTextModelWithProjection, width=8, layers=2, seed=5)
    tokenizer_3, text_encoder_3 = t5_parts()
    return {
        "transformer": tiny_sd3_transformer(qk_norm, dual),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": tiny_vae(16).eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2.eval(),
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": text_encoder_3.eval(),
        "tokenizer_3": tokenizer_3,
    }


def tiny_sd3(
    qk_norm: str | None = None, dual: tuple[int, ...] = (), cls: type = StableDiffusion3Pipeline
) -> StableDiffusion3Pipeline:
    """A random SD3 pipeline of class `cls`, silent."""
    pipe = cls(**tiny_sd3_parts(qk_norm, dual))
    pipe.set_progress_bar_config(disable=True)
    return pipe
