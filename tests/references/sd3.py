"""A from-scratch dense forward of diffusers' SD3Transformer2DModel whose attention is a callback.

Only Linear and Conv layers and the time/text embedder of the model are called, and its position table is read;
cropping, norms, modulation, activations and attention are written out (SD3: MMDiT, arXiv 2403.03206; SD3.5-medium adds
a second, image-only attention in some blocks and qk RMSNorm). Nothing is cast, except where the stock model's float32
is asked for. The joint sequence is [image | text].
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from references.attention import dense_attention
from references.layers import feed_forward, heads, modulate, modulation, rms_norm

SiteFn = Callable[[int, str, Tensor, Tensor, Tensor, int], Tensor]
"""(block index, kind, q, k, v, image_len) -> out; q, k, v and out are [B, S, H, D].

kind "joint" is attention over [image | text], "dual" the second one over the image tokens alone (S = image_len).
"""

Shifts = Mapping[int, tuple[int, int]] | Sequence[tuple[int, int]]


def plain_site(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, image_len: int) -> Tensor:
    """Stock attention, softmax(q k^T / sqrt(D)) v; SD3 has no rotation."""
    return dense_attention(q, k, v)


def sincos_table(size: int, dim: int, base: int) -> Tensor:
    """The position table [size, size, dim] in float64: [e(column) ; e(row)] with positions i * base / size.

    e(p) = [sin(p w_j) ; cos(p w_j)] of dim / 2 channels, w_j = 10000^(-4j / dim) for j < dim / 4; `base` is the
    model's sample_size / patch_size. The model keeps it rounded to float32.
    """
    position = torch.arange(size, dtype=torch.float64) * base / size
    angle = position[:, None] * 10000.0 ** (-4 * torch.arange(dim // 4, dtype=torch.float64) / dim)
    wave = torch.cat([angle.sin(), angle.cos()], dim=-1)
    columns, rows = wave[None].expand(size, -1, -1), wave[:, None].expand(-1, size, -1)
    return torch.cat([columns, rows], dim=-1)


def crop_positions(table: Tensor, grid: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Tensor:
    """The window of `table` [size, size, dim] that a grid (h, w) of tokens gets, row-major [h * w, dim].

    It starts at ((size - h) // 2 + shift[0], (size - w) // 2 + shift[1]) and must lie inside the table.
    """
    top, left = ((n - g) // 2 + s for n, g, s in zip(table.shape, grid, shift, strict=False))
    if min(top, left) < 0 or top + grid[0] > table.shape[0] or left + grid[1] > table.shape[1]:
        raise ValueError(f"window {grid} at ({top}, {left}) is not inside a table of {tuple(table.shape[:2])}")
    return table[top : top + grid[0], left : left + grid[1]].reshape(grid[0] * grid[1], -1)


def _embed(pos_embed: nn.Module, latents: Tensor, position_shift: Shifts | None) -> Tensor:
    """Conv patches of latents [B,C,h,w] plus each row's window of the position table, [B, S_img, dim]."""
    patches = pos_embed.proj(latents)
    size = pos_embed.pos_embed_max_size
    table = pos_embed.pos_embed.reshape(size, size, -1)
    shifts = position_shift or {}
    by_row = dict(shifts) if isinstance(shifts, Mapping) else dict(enumerate(shifts))
    windows = [crop_positions(table, patches.shape[2:], by_row.get(row, (0, 0))) for row in range(len(latents))]
    return patches.flatten(2).transpose(1, 2) + torch.stack(windows)


def _qkv(
    projections: Sequence[nn.Module], norms: Sequence, attn: nn.Module, x: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (heads(project(x), attn) for project in projections)
    return rms_norm(q, norms[0], dtype), rms_norm(k, norms[1], dtype), v


def _block(
    block: nn.Module, img: Tensor, txt: Tensor, temb: Tensor, site: Callable, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """One joint block: x + gate attention(norm(x)) [+ gate2 attention2(norm2(x))] + mlp_gate MLP(norm3(x)).

    The two streams have their own weights and meet in one attention over [image | text]. A dual block's image
    stream is modulated by nine parts, its second attention reading the same input as the first. The last block
    (context_pre_only) modulates the text by (scale, shift) only and drops it after attention.
    """
    dual = block.attn2 is not None
    parts = modulation(block.norm1.linear, temb, 9 if dual else 6)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts[:6]
    last = block.context_pre_only
    t_parts = modulation(block.norm1_context.linear, temb, 2 if last else 6)
    t_shift, t_scale = reversed(t_parts) if last else t_parts[:2]
    attn = block.attn
    own, added = (attn.to_q, attn.to_k, attn.to_v), (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    from_img = _qkv(own, (attn.norm_q, attn.norm_k), attn, modulate(img, shift, scale), dtype)
    from_txt = _qkv(added, (attn.norm_added_q, attn.norm_added_k), attn, modulate(txt, t_shift, t_scale), dtype)
    joint = [torch.cat([i, t], dim=1) for i, t in zip(from_img, from_txt, strict=True)]
    out = site("joint", *joint).flatten(2)
    step = gate * attn.to_out[0](out[:, : img.shape[1]])
    if dual:
        shift2, scale2, gate2 = parts[6:]
        attn2 = block.attn2
        own = (attn2.to_q, attn2.to_k, attn2.to_v)
        second = site("dual", *_qkv(own, (attn2.norm_q, attn2.norm_k), attn2, modulate(img, shift2, scale2), dtype))
        step = step + gate2 * attn2.to_out[0](second.flatten(2))
    text_out = out[:, img.shape[1] :]
    img = img + step
    img = img + mlp_gate * feed_forward(block.ff, modulate(img, mlp_shift, mlp_scale))
    if not last:
        t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = t_parts[2:]
        txt = txt + t_gate * attn.to_add_out(text_out)
        txt = txt + t_mlp_gate * feed_forward(block.ff_context, modulate(txt, t_mlp_shift, t_mlp_scale))
    return img, txt


def reference_forward(
    transformer: nn.Module,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    *,
    site_fn: SiteFn = plain_site,
    skip_layers: Collection[int] | None = None,
    position_shift: Shifts | None = None,
    norm_dtype: torch.dtype | None = None,
) -> Tensor:
    """The velocity [B,C,h,w]; arguments as in the stock forward (latents [B,C,h,w], timestep in 0..1000).

    `site_fn` decides every attention, first a block's "joint" one, then its "dual" one. `skip_layers` leaves whole
    blocks out. `position_shift[row] = (rows, columns)` moves that row's window of the position table, in tokens;
    rows that are not named keep the centred one. `norm_dtype` is rms_norm's `square_dtype`: torch.float32 gives the
    stock model's numbers, None exact algebra; without qk-norm it does nothing.
    """
    img = _embed(transformer.pos_embed, hidden_states, position_shift)
    txt = transformer.context_embedder(encoder_hidden_states)
    temb = transformer.time_text_embed(timestep, pooled_projections)
    image_len = img.shape[1]
    for index, block in enumerate(transformer.transformer_blocks):
        if skip_layers is not None and index in skip_layers:
            continue

        def site(kind: str, q: Tensor, k: Tensor, v: Tensor, index: int = index) -> Tensor:
            return site_fn(index, kind, q, k, v, image_len)

        img, txt = _block(block, img, txt, temb, site, norm_dtype)
    scale, shift = modulation(transformer.norm_out.linear, temb, 2)
    out = transformer.proj_out(modulate(img, shift, scale))
    batch, _, height, width = hidden_states.shape
    p = transformer.config.patch_size
    patches = out.reshape(batch, height // p, width // p, p, p, -1)  # rows, columns, row and column in the patch, C
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
