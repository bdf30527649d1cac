"""The velocity of FLUX and SD3 with perturbed attention, with blocks left out, or with permuted tokens.

The blocks are those of references.flux and references.sd3; only the walk over them is written here again, because a
block may be left out (SLG) or get its image tokens in another order (TPG, arXiv 2506.10036). Block numbers are global.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from references import flux, sd3
from references.attention import apply_rope, dense_attention
from references.guidance import Layout, Target, nag_attention, perturbed_attention
from references.layers import modulate, modulation

Attend = Callable[[int, str, Tensor, Tensor, Tensor, Layout], Tensor]
"""(block, kind, q, k, v, layout) -> out; kind is "joint", or "dual" for SD3.5's second, image-only attention."""

STOCK = torch.float32  # diffusers rotates, and takes SD3.5's RMSNorm, in float32 whatever the model's dtype


def plain(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Stock attention."""
    return dense_attention(q, k, v)


@dataclass(frozen=True)
class Change:
    """What a pass does differently: attention, blocks left out, and image tokens of a block's input permuted.

    `permute[block]` is a permutation p of the image tokens: token i of the block's input is the one that was p[i].
    Positions and rotations stay, and nothing puts the tokens back in order afterwards.
    """

    attend: Attend = plain
    skip: Collection[int] = ()
    permute: Mapping[int, Tensor] = field(default_factory=dict)


def perturbing(
    target: Target, amounts: Mapping[int, Sequence[float]], kinds: Collection[str] = ("joint", "dual")
) -> Attend:
    """Attention led to `target` by amounts[block], one u per head, at the named kinds of attention; plain elsewhere."""

    def attend(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        if index not in amounts or kind not in kinds:
            return dense_attention(q, k, v)
        return perturbed_attention(q, k, v, layout, target, amounts[index])

    return attend


def nag_attend(blocks: Collection[int], kinds: Collection[str] = ("joint",), **options: float) -> Attend:
    """NAG at some attentions, for rows [positive x n ; negative x n]; `options` are those of `nag`.

    As the authors have it SD3.5's second attention, which sees no text, is left alone.
    """

    def attend(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        out = dense_attention(q, k, v)
        return nag_attention(out, layout, **options) if index in blocks and kind in kinds else out

    return attend


def permutation(seed: int, step: int, block: int, tokens: int) -> Tensor:
    """TPG's permutation: a fresh one for every seed, step and block, the same in all rows."""
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(seed * 1000003 + step * 1009 + block))


def flux_velocity(model: nn.Module, call: Mapping[str, Any], change: Change | None = None) -> Tensor:
    """The velocity [B, S_img, C] of a FLUX transformer; `call` are the arguments of its stock forward."""
    change = change or Change()
    x = call["hidden_states"]
    times = [call["timestep"].to(x.dtype) * 1000]
    if call.get("guidance") is not None:
        times.append(call["guidance"].to(x.dtype) * 1000)
    temb = model.time_text_embed(*times, call["pooled_projections"])
    img, txt = model.x_embedder(x), model.context_embedder(call["encoder_hidden_states"])
    ids = torch.cat([call["txt_ids"], call["img_ids"]])
    table = flux.rope_table(ids, tuple(model.config.axes_dims_rope))
    rows, columns = (int(n) + 1 for n in call["img_ids"].amax(dim=0)[1:])
    layout = Layout(txt.shape[1], (rows, columns))

    for index, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        if index in change.skip:
            continue
        if index in change.permute:
            img = img[:, change.permute[index]]

        def site(q: Tensor, k: Tensor, v: Tensor, index: int = index) -> Tensor:
            return change.attend(index, "joint", apply_rope(q, *table, STOCK), apply_rope(k, *table, STOCK), v, layout)

        if index < len(model.transformer_blocks):
            img, txt = flux._double_block(block, img, txt, temb, site)
        else:
            joint = flux._single_block(block, torch.cat([txt, img], dim=1), temb, site)
            txt, img = joint[:, : layout.start], joint[:, layout.start :]
    scale, shift = modulation(model.norm_out.linear, temb, 2)
    return model.proj_out(modulate(img, shift, scale))


def sd3_velocity(model: nn.Module, call: Mapping[str, Any], change: Change | None = None) -> Tensor:
    """The velocity [B, C, h, w] of an SD3 or SD3.5 transformer; `call` are the arguments of its stock forward."""
    change = change or Change()
    batch, _, height, width = call["hidden_states"].shape
    p = model.config.patch_size
    layout = Layout(0, (height // p, width // p))
    img = sd3._embed(model.pos_embed, call["hidden_states"], None)
    txt = model.context_embedder(call["encoder_hidden_states"])
    temb = model.time_text_embed(call["timestep"], call["pooled_projections"])

    for index, block in enumerate(model.transformer_blocks):
        if index in change.skip:
            continue
        if index in change.permute:
            img = img[:, change.permute[index]]

        def site(kind: str, q: Tensor, k: Tensor, v: Tensor, index: int = index) -> Tensor:
            return change.attend(index, kind, q, k, v, layout)

        img, txt = sd3._block(block, img, txt, temb, site, STOCK)
    scale, shift = modulation(model.norm_out.linear, temb, 2)
    patches = model.proj_out(modulate(img, shift, scale)).reshape(batch, *layout.grid, p, p, -1)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
