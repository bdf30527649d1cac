"""A from-scratch dense forward of diffusers' FluxTransformer2DModel whose attention is a callback.

Only Linear layers and the time/text embedder of the model are called; norms, modulation, activations, RoPE
tables and attention are written out (FLUX.1: MMDiT double blocks, arXiv 2403.03206, then single blocks).
Nothing is cast, except where the stock model's float32 is asked for.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from references.attention import apply_rope, dense_attention
from references.layers import feed_forward, gelu_tanh, heads, modulate, modulation, rms_norm

SiteFn = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(global block index, q, k, v, cos, sin, text_len) -> out; q, k, v and out are [B, S_text + S_img, H, D]."""


def plain_site(index: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, text_len: int) -> Tensor:
    """Stock attention, softmax((Rq)(Rk)^T / sqrt(D)) v, with the rotation in q's own dtype."""
    return dense_attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)


def stock_rounding_site(index: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, text_len: int) -> Tensor:
    """plain_site with rotated q and k rounded to float32, which diffusers does whatever the model's dtype."""
    return dense_attention(apply_rope(q, cos, sin, torch.float32), apply_rope(k, cos, sin, torch.float32), v)


def rope_table(
    ids: Tensor, axes_dim: tuple[int, ...], theta: float = 10000.0, round_to: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos, sin [S, sum(axes_dim)] of ids[:, a] * theta^(-2i / axes_dim[a]) for axis a, pair i, each twice.

    Worked out in float64 and rounded to `round_to` (float32 as the stock model, float64 for exact algebra).
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(ids[:, axis].double()[:, None] * frequency[None])
    angle = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return angle.cos().to(round_to), angle.sin().to(round_to)


def image_ids(height: int, width: int, column_shift: float = 0.0) -> Tensor:
    """FLUX ids (0, row, column + shift), row-major [height * width, 3]; in AlignedGen shift = width."""
    return torch.tensor([[0.0, r, c + column_shift] for r in range(height) for c in range(width)])


def _image_qkv(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = rms_norm(heads(attn.to_q(x), attn), attn.norm_q)
    k = rms_norm(heads(attn.to_k(x), attn), attn.norm_k)
    return q, k, heads(attn.to_v(x), attn)


def _text_qkv(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = rms_norm(heads(attn.add_q_proj(x), attn), attn.norm_added_q)
    k = rms_norm(heads(attn.add_k_proj(x), attn), attn.norm_added_k)
    return q, k, heads(attn.add_v_proj(x), attn)


def _double_block(block: nn.Module, img: Tensor, txt: Tensor, temb: Tensor, site: Callable) -> tuple[Tensor, Tensor]:
    """Two streams with their own weights that meet in one attention over [text | image]."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation(block.norm1.linear, temb, 6)
    t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = modulation(block.norm1_context.linear, temb, 6)
    from_img = _image_qkv(block.attn, modulate(img, shift, scale))
    from_txt = _text_qkv(block.attn, modulate(txt, t_shift, t_scale))
    joint = [torch.cat([t, i], dim=1) for t, i in zip(from_txt, from_img, strict=True)]
    out = site(*joint).flatten(2)
    txt_out, img_out = out[:, : txt.shape[1]], out[:, txt.shape[1] :]
    img = img + gate * block.attn.to_out[0](img_out)
    txt = txt + t_gate * block.attn.to_add_out(txt_out)
    img = img + mlp_gate * feed_forward(block.ff, modulate(img, mlp_shift, mlp_scale))
    txt = txt + t_mlp_gate * feed_forward(block.ff_context, modulate(txt, t_mlp_shift, t_mlp_scale))
    return img, txt


def _single_block(block: nn.Module, x: Tensor, temb: Tensor, site: Callable) -> Tensor:
    """x + gate * Linear([attention(n) | gelu(Linear(n))]) with one modulated norm n for both branches."""
    shift, scale, gate = modulation(block.norm.linear, temb, 3)
    n = modulate(x, shift, scale)
    out = site(*_image_qkv(block.attn, n)).flatten(2)
    return x + gate * block.proj_out(torch.cat([out, gelu_tanh(block.proj_mlp(n))], dim=-1))


def reference_forward(
    transformer: nn.Module,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    txt_ids: Tensor,
    site_fn: SiteFn = plain_site,
    guidance: Tensor | None = None,
) -> Tensor:
    """The velocity [B, S_img, C_out]; arguments as in the stock forward (timestep in 0..1, guidance as is).

    `site_fn` is called once per block, double blocks first, with the global block index.
    """
    conditions = [timestep.to(hidden_states.dtype) * 1000]
    if guidance is not None:
        conditions.append(guidance.to(hidden_states.dtype) * 1000)
    temb = transformer.time_text_embed(*conditions, pooled_projections)
    img, txt = transformer.x_embedder(hidden_states), transformer.context_embedder(encoder_hidden_states)
    cos, sin = rope_table(torch.cat([txt_ids, img_ids]), tuple(transformer.config.axes_dims_rope))
    text_len = txt.shape[1]

    def site_at(index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, k, v: site_fn(index, q, k, v, cos, sin, text_len)

    n_double = len(transformer.transformer_blocks)
    for i, block in enumerate(transformer.transformer_blocks):
        img, txt = _double_block(block, img, txt, temb, site_at(i))
    x = torch.cat([txt, img], dim=1)
    for i, block in enumerate(transformer.single_transformer_blocks):
        x = _single_block(block, x, temb, site_at(n_double + i))
    scale, shift = modulation(transformer.norm_out.linear, temb, 2)
    return transformer.proj_out(modulate(x[:, text_len:], shift, scale))
