"""Dense reference attention for AlignedGen (arXiv 2509.17088) and StyleAligned (arXiv 2312.02133).

Everything is plain torch in the dtype of its inputs (float64 welcome); tokens are [B, S, H, D]; masks and
score matrices are materialised. q and k enter after qk-norm and before RoPE; outputs are before `to_out`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """out = softmax(q k^T / sqrt(D) + bias) v per head.

    q [B,Sq,H,D], k and v [B,Sk,H,D]; `bias` broadcasts to [B,H,Sq,Sk] and may hold -inf (hidden key),
    but not for every key of a query. Returns [B,Sq,H,D].
    """
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def adain(x: Tensor, ref: Tensor, unbiased: bool = True, eps: float = 1e-5) -> Tensor:
    """AdaIN(x, r) = (x - mu_x) / sigma_x * sigma_r + mu_r with sigma = sqrt(var + eps).

    Of both papers. mu and var are taken over the token axis (dim 1), per head and channel.
    x [B,N,H,D], ref [B or 1,M,H,D]; M may differ from N.

    The variance is UNBIASED (divides by n-1) in both papers' released code. StyleAligned's saved `q_std`
    shows it directly: unbiased agrees to 3e-7, biased is 0.12 off, dropping eps is 5e-6 off. For AlignedGen
    with equal token counts n-1 all but cancels, yet the residual to the saved arrays singles out unbiased.
    """
    mu_x, mu_r = x.mean(dim=1, keepdim=True), ref.mean(dim=1, keepdim=True)
    sigma_x = (_variance(x, unbiased) + eps).sqrt()
    sigma_r = (_variance(ref, unbiased) + eps).sqrt()
    return (x - mu_x) / sigma_x * sigma_r + mu_r


def _variance(x: Tensor, unbiased: bool) -> Tensor:
    """sum((x - mean)^2) / (n - 1 or n) over dim 1, kept."""
    centred = x - x.mean(dim=1, keepdim=True)
    return (centred**2).sum(dim=1, keepdim=True) / (x.shape[1] - int(unbiased))


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, rope_dtype: torch.dtype | None = None) -> Tensor:
    """FLUX's interleaved RoPE: channels (2i, 2i+1) = (a, b) -> (a cos - b sin, a sin + b cos).

    x [B,S,H,D]; cos and sin [S,D], each angle twice in a row. `rope_dtype` is the dtype of the rotation
    (default: x's own). diffusers always rotates in float32, so torch.float32 reproduces it to the bit in a
    float64 model too.
    """
    dtype = x.dtype if rope_dtype is None else rope_dtype
    c = cos[None, :, None, 0::2].to(dtype)
    s = sin[None, :, None, 0::2].to(dtype)
    a, b = x[..., 0::2].to(dtype), x[..., 1::2].to(dtype)
    out = torch.empty_like(x, dtype=dtype)
    out[..., 0::2] = a * c - b * s
    out[..., 1::2] = b * c + a * s
    return out.to(x.dtype)


def decreasing_lambda(t: float) -> float:
    """AlignedGen's class-default schedule, lambda(t) = (t / 1000)^2 with t in 0..1000."""
    return (t / 1000.0) ** 2


def alignedgen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    ref_cos_shifted: Tensor,
    ref_sin_shifted: Tensor,
    text_len: int,
    lambda_: float = 1.1,
    *,
    ref_row: int = 0,
    adain: bool = True,
    log_bias: float = 0.0,
    share_mask: Tensor | None = None,
    ref_sees_copy: bool = False,
    rope_dtype: torch.dtype | None = None,
) -> Tensor:
    """AlignedGen (arXiv 2509.17088): AdaIN, ShiftPE, selective sharing; joint sequence [text | image].

    1. image part of q, k:  x <- AdaIN(x, x[ref_row])     (text and v untouched, the reference row unchanged)
    2. q^ = R(pos) q,  k^ = R(pos) k,  k_ref = R(pos shifted by the packed width) k[ref_row, image]
    3. row b != ref_row: out = softmax([q^ k^_b^T , lambda q^ k_ref^T] / sqrt(D) + [0 , bias]) [v_b ; v_ref]
       reference row:    out = softmax(q^ k^^T / sqrt(D)) v        (its copy is hidden)

    q, k, v [B,S,H,D]; cos, sin [S,D]; ref_*_shifted [N_img,D]; bias = log_bias. `share_mask` is bool,
    broadcastable to [B,H,S,N_img]: True where a query may see a reference token.
    `ref_sees_copy` is the released `constrain_first=False`: the reference row sees its own shifted copy,
    neither multiplied by lambda nor biased.
    """
    batch, _, heads, _ = q.shape
    n_img = q.shape[1] - text_len
    others = torch.arange(batch) != ref_row
    if adain:
        q, k = _adain_image(q, others, ref_row, text_len), _adain_image(k, others, ref_row, text_len)
    q_rot, k_rot = apply_rope(q, cos, sin, rope_dtype), apply_rope(k, cos, sin, rope_dtype)

    k_ref = apply_rope(k[ref_row : ref_row + 1, text_len:], ref_cos_shifted, ref_sin_shifted, rope_dtype)
    k_ref = k_ref.repeat(batch, 1, 1, 1)
    k_ref[others] = k_ref[others] * lambda_
    v_ref = v[ref_row : ref_row + 1, text_len:].repeat(batch, 1, 1, 1)

    visible = torch.ones(batch, heads, q.shape[1], n_img, dtype=torch.bool)
    visible[ref_row] = ref_sees_copy
    if share_mask is not None:
        visible = visible & share_mask
    bias_ref = torch.zeros(visible.shape, dtype=q.dtype)
    bias_ref[others] = log_bias
    bias_ref = bias_ref.masked_fill(~visible, -math.inf)
    bias = torch.cat([torch.zeros(batch, heads, q.shape[1], q.shape[1], dtype=q.dtype), bias_ref], dim=-1)
    return dense_attention(q_rot, torch.cat([k_rot, k_ref], dim=1), torch.cat([v, v_ref], dim=1), bias)


def _adain_image(x: Tensor, others: Tensor, ref_row: int, text_len: int) -> Tensor:
    """AdaIN of the image tokens of rows `others` to those of row `ref_row`; everything else as it is."""
    out = x.clone()
    out[others, text_len:] = adain(x[others, text_len:], x[ref_row : ref_row + 1, text_len:])
    return out


def stylealigned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    groups: int = 1,
    share: bool = True,
    adain_q: bool = True,
    adain_k: bool = True,
    adain_v: bool = False,
    score_scale: float = 1.0,
    score_shift: float = 0.0,
    full_share: bool = False,
    ref_sees_copy: bool = False,
    text_len: int = 0,
    rotate: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """StyleAligned's shared attention (arXiv 2312.02133), each group of rows led by its reference.

    Q^, K^ = AdaIN(Q, Q_r), AdaIN(K, K_r) on image tokens, then for rows other than the reference
    out = softmax([Q^ (a K_r)^T / sqrt(D) + b , Q^ K^^T / sqrt(D)]) [V_r ; V],  a = score_scale, b = shift
    `b` joins the logits after 1/sqrt(D), touched by neither it nor a: b = log 2 doubles the reference's odds.

    `groups=2` is a batch doubled for guidance, [uncond x n ; cond x n], references in rows 0 and n;
    `groups=1` a plain batch (FLUX), reference row 0. The first `text_len` tokens are neither normalised nor
    shared. `rotate` (RoPE) acts on [B,S,H,D] q and k after AdaIN; the shared copy keeps its own positions.
    `full_share`: every row sees the image keys of every row of its group; a and b act on the reference's keys
    as seen by the other rows. (The released code drops AdaIN, a and b here: the neutral setting of these.)
    `ref_sees_copy=True` lets the reference see its unscaled, biased duplicate as the released code does;
    without text that is a no-op, with text it would double the odds of image against text.
    """
    batch = q.shape[0]
    if batch % groups:
        raise ValueError(f"batch of {batch} rows does not split into {groups} groups")
    size = batch // groups
    outs = []
    for g in range(groups):
        rows = slice(g * size, (g + 1) * size)
        others = torch.arange(size) != 0
        qg, kg, vg = q[rows], k[rows], v[rows]
        qg = _adain_image(qg, others, 0, text_len) if adain_q else qg
        kg = _adain_image(kg, others, 0, text_len) if adain_k else kg
        vg = _adain_image(vg, others, 0, text_len) if adain_v else vg
        if rotate is not None:
            qg, kg = rotate(qg), rotate(kg)
        for row in range(size):
            keys, values, biases = [kg[row]], [vg[row]], [torch.zeros(kg.shape[1], dtype=q.dtype)]
            for src in range(size) if full_share else [0]:
                if not share or (src == row and (full_share or not ref_sees_copy)):
                    continue
                factor = score_scale if src == 0 and row != 0 else 1.0
                shift = score_shift if src == 0 else 0.0
                keys.append(kg[src, text_len:] * factor)
                values.append(vg[src, text_len:])
                biases.append(torch.full((kg.shape[1] - text_len,), shift, dtype=q.dtype))
            key, value, bias = torch.cat(keys)[None], torch.cat(values)[None], torch.cat(biases)
            outs.append(dense_attention(qg[row : row + 1], key, value, bias))
    return torch.cat(outs)
