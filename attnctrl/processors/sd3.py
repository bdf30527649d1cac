"""SD3 and SD3.5: tokens [image, text], additive positions, joint blocks and SD3.5's second, image-only attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import (
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..batch import predicted
from ..blocks import BlockPlace
from ..board import Board, CallState, Gates
from ..edge import Batched, Edge, walked
from ..errors import ControlError
from ..host import Host, register_model
from ..layout import Arguments, Layout, Rotary, Site
from ..phases import controlled_attention
from ..view import gathered
from ..words import Part
from .encoding import encoded, usual_length
from .positions import free_place, placing_hook
from .sites import sd3_sites
from .stock import not_ours, of_stock


def unturned(x: Tensor, rotary: Rotary) -> Tensor:
    """Keys as they are: SD3's positions are in the tokens."""
    return x


class ControlledSD3AttnProcessor:
    """SD3's joint attention with the phases of a session's controls; otherwise the stock processor's arithmetic.

    Serves `attn` (image and text) and SD3.5's `attn2` (image only); fused projections too.
    """

    def __init__(self, stock: Any, board: Board, gates: Gates, site: Site) -> None:
        self.stock, self.board, self.gates, self.site = stock, board, gates, site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states [B, S_img, C] -> the same; with encoder_hidden_states a pair (image, text)."""
        state = self.board.now()
        if state is None:
            stock: Any = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask)
            return stock
        image, text, _ = sd3_attention(self, state, attn, hidden_states, encoder_hidden_states)
        image = attn.to_out[1](attn.to_out[0](image))
        return image if text is None else (image, text)


class ControlledSD3IPProcessor(SD3IPAdapterJointAttnProcessor2_0):
    """The same in a block with an IP-Adapter, whose own attention to the picture prompt stays as it is."""

    def __init__(self, stock: SD3IPAdapterJointAttnProcessor2_0, board: Board, gates: Gates, site: Site) -> None:
        torch.nn.Module.__init__(self)
        self.stock, self.board, self.gates, self.site = stock, board, gates, site

    scale = of_stock("scale")

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
        stock, state = self.stock, self.board.now()
        if state is None:
            return stock(attn, hidden_states, encoder_hidden_states, attention_mask, ip_hidden_states, temb)
        image, text, projected = sd3_attention(self, state, attn, hidden_states, encoder_hidden_states)
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
    processor: Any, state: CallState, attn: Any, image: Tensor, text: Tensor | None
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
        state=state,
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


class SD3Edge(Edge):
    """SD3 and SD3.5 and every model of their class (`SD3Transformer2DModel`), tiny-sd3 among them."""

    name = "sd3"
    transformer = SD3Transformer2DModel
    positions = "additive"
    batched = Batched(residuals=("block_controlnet_hidden_states", "joint_attention_kwargs"))
    embed = "pos_embed"

    def sites(self, transformer: Any) -> tuple[Site, ...]:
        """A joint site a block, then the block's second attention where it has one; late: the last two thirds."""
        paths = {"joint": r"transformer_blocks\.(\d+)\.attn", "dual": r"transformer_blocks\.(\d+)\.attn2"}
        return sd3_sites([(stream, n, attn.heads, attn) for stream, n, attn in walked(transformer, paths)])

    def processor(self, site: Site, board: Board, gates: Gates) -> Any:
        """Raises ControlError where an unknown processor stands, or one that diffusers itself gets wrong."""
        stock: Any = site.module.processor
        if type(stock) is SD3IPAdapterJointAttnProcessor2_0:
            return ControlledSD3IPProcessor(stock, board, gates, site)
        if type(stock) not in (JointAttnProcessor2_0, FusedJointAttnProcessor2_0):
            raise not_ours(site)
        if type(stock) is FusedJointAttnProcessor2_0 and site.module.norm_q is not None:
            raise ControlError(
                "diffusers' fused projections leave out SD3.5's query and key norms; "
                "call unfuse_qkv_projections() first"
            )
        return ControlledSD3AttnProcessor(stock, board, gates, site)

    def layout(self, transformer: Any, arguments: Arguments) -> Layout:
        """Image first, then text."""
        patch = transformer.config.patch_size
        rows, columns = (side // patch for side in arguments["hidden_states"].shape[-2:])
        text = arguments["encoder_hidden_states"].shape[1]
        return Layout.of((("image", rows * columns), ("text", text)), (rows, columns))

    def blocks(self, transformer: Any) -> tuple[BlockPlace, ...]:
        """The joint blocks."""
        holder = transformer.transformer_blocks
        return tuple(BlockPlace(holder, i) for i in range(len(holder)))

    def place(self, transformer: Any, layout: Layout) -> tuple[float, ...]:
        """Beside the picture; where the position table has no room there below it, or as far away as it goes."""
        return free_place(transformer.pos_embed.pos_embed_max_size, layout.grid)

    def position_hooks(self, transformer: Any, board: Board) -> tuple[Any, ...]:
        """One hook on the patch embedding, which moves the rows that the board places."""
        return (placing_hook(transformer.pos_embed, board),)

    def viewed(self, arguments: Arguments, layout: Layout, shown: Tensor) -> Arguments:
        """ControlNet residuals of the shown tokens; positions are in the tokens."""
        residuals = arguments.get("block_controlnet_hidden_states")
        if residuals is None:
            return arguments
        return {**arguments, "block_controlnet_hidden_states": [gathered(x, shown) for x in residuals]}


@register_model
class SD3Host(Host):
    """Every SD3 pipeline of diffusers, and what has its parts."""

    edge: ClassVar[Edge] = SD3Edge()

    def conditional(self, arguments: Arguments, call: int) -> tuple[bool, ...]:
        """CFG doubles the batch, negative prompts first; skip-layer guidance's second call has the prompts alone."""
        if arguments.get("skip_layers") is not None:
            return (True,)
        if getattr(self.pipe, "do_classifier_free_guidance", False):
            return self.edge.halves
        return (call == 0,)

    def continues(self, arguments: Arguments) -> bool:
        """Skip-layer guidance's second call, of half the batch, belongs to the first."""
        return arguments.get("skip_layers") is not None

    @property
    def guidance_scale(self) -> float | None:
        """The pipeline's own, if it uses it."""
        return float(self.pipe.guidance_scale) if getattr(self.pipe, "do_classifier_free_guidance", False) else None

    @property
    def unit(self) -> int:
        """Patches of latents."""
        return int(self.pipe.vae_scale_factor * self.pipe.patch_size)

    def parts(self, prompt: str, **call: Any) -> tuple[Part, ...]:
        """CLIP's tokens, which both encoders share, and then T5's."""
        pipe, clip = self.pipe, self.pipe.tokenizer_max_length
        texts = prompt, call.get("prompt_2") or prompt, call.get("prompt_3") or prompt
        parts = [Part(one, text, 0, clip) for one, text in zip((pipe.tokenizer, pipe.tokenizer_2), texts, strict=False)]
        if pipe.text_encoder_3 is not None:
            parts.append(Part(pipe.tokenizer_3, texts[2], clip, call.get("max_sequence_length") or usual_length(pipe)))
        return tuple(parts)

    def encoded_prompt(self, prompt: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """By the pipeline's own encoders."""
        length = arguments["encoder_hidden_states"].shape[1] - self.pipe.tokenizer_max_length
        embeds, pooled = self._encoded([prompt], arguments["hidden_states"].device, length)
        return embeds, pooled

    def encoded_picture(self, picture: Image.Image, arguments: Arguments, layout: Layout) -> Tensor:
        """Latents [1, C, h, w]."""
        self.part("encode_prompt")  # a picture comes with its caption
        height, width = (side * self.pipe.vae_scale_factor for side in arguments["hidden_states"].shape[-2:])
        return encoded(self.pipe, picture, height, width)

    def condition(self, prompt: str | Sequence[str], height: int, width: int, **call: Any) -> Arguments:
        """`max_sequence_length`; sizes come with the latents."""
        length = call.get("max_sequence_length") or usual_length(self.pipe)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        embeds, pooled = self._encoded(prompts, self.device, length)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Arguments) -> Tensor:
        """Of latents [B, C, h, w]."""
        timestep = 1000 * torch.as_tensor(sigma, dtype=latents.dtype, device=latents.device).expand(len(latents))
        return predicted(
            self.pipe.transformer(hidden_states=latents, timestep=timestep, return_dict=False, **condition)
        )

    def _encoded(self, prompts: list[str], device: torch.device, length: int) -> tuple[Tensor, Tensor]:
        embeds, _, pooled, _ = self.part("encode_prompt")(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return embeds, pooled
