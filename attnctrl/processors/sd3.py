"""SD3 and SD3.5: tokens [image, text], additive positions, joint blocks and SD3.5's second, image-only attention."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import (
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..control import Reference, Rotary
from ..errors import ControlError
from ..layout import Arguments, Site, TokenLayout, groups_of
from ..phases import Gates, controlled_attention
from ..rows import PictureRow
from .encoding import encoded, row_of
from .positions import placing_hook


def unturned(x: Tensor, rotary: Rotary) -> Tensor:
    """Keys as they are: SD3's positions are in the tokens."""
    return x


class ControlledSD3AttnProcessor:
    """SD3's joint attention with the phases of a session's controls; otherwise the stock processor's arithmetic.

    Serves `attn` (image and text) and SD3.5's `attn2` (image only); fused projections too.
    """

    def __init__(self, stock: Any, run: Any, gates: Gates, site: Site) -> None:
        self.stock, self.run, self.gates, self.site = stock, run, gates, site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states [B, S_img, C] -> the same; with encoder_hidden_states a pair (image, text)."""
        image, text, _ = sd3_attention(self, attn, hidden_states, encoder_hidden_states)
        image = attn.to_out[1](attn.to_out[0](image))
        return image if text is None else (image, text)


class ControlledSD3IPProcessor(SD3IPAdapterJointAttnProcessor2_0):
    """The same in a block with an IP-Adapter, whose own attention to the picture prompt stays as it is."""

    def __init__(self, stock: SD3IPAdapterJointAttnProcessor2_0, run: Any, gates: Gates, site: Site) -> None:
        torch.nn.Module.__init__(self)
        self.stock, self.run, self.gates, self.site = stock, run, gates, site

    @property
    def scale(self) -> float:
        """The adapter's scale, which the pipeline may set."""
        return float(self.stock.scale)

    @scale.setter
    def scale(self, value: float) -> None:
        self.stock.scale = value

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        ip_hidden_states: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Any:
        """As ControlledSD3AttnProcessor, the adapter's term added before the output projection."""
        stock = self.stock
        image, text, projected = sd3_attention(self, attn, hidden_states, encoder_hidden_states)
        if stock.scale != 0 and ip_hidden_states is not None:
            states = stock.norm_ip(ip_hidden_states, temb=temb)
            k, v = (to(states).unflatten(-1, (attn.heads, -1)) for to in (stock.to_k_ip, stock.to_v_ip))
            q = stock.norm_q(projected[0].transpose(1, 2))
            k = torch.cat([stock.norm_k(projected[1].transpose(1, 2)), stock.norm_ip_k(k.transpose(1, 2))], dim=2)
            v = torch.cat([projected[2], v], dim=1).transpose(1, 2)
            read = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2, 3)
            image = image + read.to(q.dtype) * stock.scale
        image = attn.to_out[1](attn.to_out[0](image))
        return image if text is None else (image, text)


def sd3_attention(
    processor: Any, attn: Any, image: Tensor, text: Tensor | None
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Image [B, S_img, C] before its output projection, text after its own, and the image's unnormalised q, k, v."""
    projected = tuple(x.unflatten(-1, (attn.heads, -1)) for x in _projected(attn, image, "to_qkv", "to_{}"))
    q, k, v = projected
    if text is not None:
        own = (x.unflatten(-1, (attn.heads, -1)) for x in _projected(attn, text, "to_added_qkv", "add_{}_proj"))
        text_q, text_k, text_v = own
        q, k = _normed(q, attn.norm_q), _normed(k, attn.norm_k)
        text_q, text_k = _normed(text_q, attn.norm_added_q), _normed(text_k, attn.norm_added_k)
        q, k, v = (torch.cat(pair, dim=1) for pair in ((q, text_q), (k, text_k), (v, text_v)))
    else:
        q, k = _normed(q, attn.norm_q), _normed(k, attn.norm_k)
    out = controlled_attention(
        q,
        k,
        v,
        state=processor.run.call,
        gates=processor.gates,
        site=processor.site,
        rotary=None,
        rotate=unturned,
        backend=None,
    )
    out = out.flatten(2, 3).to(q.dtype)
    if text is None:
        return out, None, projected
    out, text = out[:, : image.shape[1]], out[:, image.shape[1] :]
    return out, text if attn.context_pre_only else attn.to_add_out(text), projected


def _projected(attn: Any, x: Tensor, fused: str, single: str) -> tuple[Tensor, ...]:
    if attn.fused_projections:
        return tuple(getattr(attn, fused)(x).chunk(3, dim=-1))
    return tuple(getattr(attn, single.format(name))(x) for name in "qkv")


def _normed(x: Tensor, norm: Any) -> Tensor:
    return x if norm is None else norm(x.transpose(1, 2)).transpose(1, 2)


class SD3Architecture:
    """SD3 and SD3.5 and every model of their class (`SD3Transformer2DModel`), tiny-sd3 among them."""

    name = "sd3"
    rotary = False
    transformer = SD3Transformer2DModel

    def sites(self, transformer: Any) -> tuple[Site, ...]:
        """A joint site a block, then the block's second attention where it has one; late: the last two thirds."""
        count = len(transformer.transformer_blocks)
        sites = []
        for n, block in enumerate(transformer.transformer_blocks):
            groups = groups_of(n, count, 3 * n >= count)
            sites.append(Site(n, "joint", n, block.attn.heads, block.attn, groups))
            if block.attn2 is not None:
                sites.append(Site(n, "dual", n, block.attn2.heads, block.attn2, groups))
        return tuple(sites)

    def processor(self, site: Site, run: Any, gates: Gates) -> Any:
        """Raises ControlError where an unknown processor stands, or one that diffusers itself gets wrong."""
        stock: Any = site.module.processor
        if type(stock) is SD3IPAdapterJointAttnProcessor2_0:
            return ControlledSD3IPProcessor(stock, run, gates, site)
        if type(stock) not in (JointAttnProcessor2_0, FusedJointAttnProcessor2_0):
            raise ControlError(
                f"{site.label} has a {type(stock).__name__}, which a control here cannot carry: "
                "choose other blocks, or put the model's own processors back"
            )
        if type(stock) is FusedJointAttnProcessor2_0 and site.module.norm_q is not None:
            raise ControlError(
                "diffusers' fused projections leave out SD3.5's query and key norms; "
                "call unfuse_qkv_projections() first"
            )
        return ControlledSD3AttnProcessor(stock, run, gates, site)

    def layout(self, transformer: Any, arguments: Arguments) -> TokenLayout:
        """Image first, then text."""
        patch = transformer.config.patch_size
        rows, columns = (side // patch for side in arguments["hidden_states"].shape[-2:])
        image = rows * columns
        text = arguments["encoder_hidden_states"].shape[1]
        return TokenLayout((image, image + text), (0, image), (rows, columns))

    def conditional(self, pipe: Any, arguments: Arguments, call: int) -> tuple[bool, ...]:
        """CFG doubles the batch, negative prompts first; skip-layer guidance's second call has the prompts alone."""
        guided = getattr(pipe, "do_classifier_free_guidance", False) and arguments.get("skip_layers") is None
        return (False, True) if guided else (True,)

    def shifted(self, transformer: Any, arguments: Arguments, rows: int, columns: int) -> Rotary:
        """None: keys cannot be moved, whole rows can (`placed`)."""
        return None

    def picture_row(self, pipe: Any, reference: Reference, arguments: Arguments, layout: TokenLayout) -> PictureRow:
        """Encode the picture at the size of this call, and its caption at this call's text length."""
        hidden = arguments["hidden_states"]
        height, width = (side * pipe.vae_scale_factor for side in hidden.shape[-2:])
        latent = encoded(pipe, reference, height, width)
        embeds, pooled = self.encoded_prompt(pipe, reference.caption, arguments)
        return row_of(pipe, reference, latent, hidden, layout.grid[0] * layout.grid[1], embeds, pooled)

    def encoded_prompt(self, pipe: Any, prompt: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """By the pipeline's own encoders."""
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            device=arguments["hidden_states"].device,
            do_classifier_free_guidance=False,
            max_sequence_length=arguments["encoder_hidden_states"].shape[1] - pipe.tokenizer_max_length,
        )
        return embeds, pooled

    def blocks(self, transformer: Any) -> list[tuple[torch.nn.ModuleList, int]]:
        """The joint blocks."""
        holder = transformer.transformer_blocks
        return [(holder, i) for i in range(len(holder))]

    def guidance_scale(self, pipe: Any) -> float | None:
        """The pipeline's own, if it uses it."""
        return float(pipe.guidance_scale) if getattr(pipe, "do_classifier_free_guidance", False) else None

    def position_hooks(self, transformer: Any, run: Any) -> tuple[Any, ...]:
        """One hook on the patch embedding, which moves the rows of `run.placed`."""
        return (placing_hook(transformer.pos_embed, run),)
