"""FLUX: token order [text, image, condition images], rotary positions, double- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
    FluxTransformer2DModel,
    _get_qkv_projections,
)
from PIL import Image
from torch import Tensor

from ..attention import Backend
from ..batch import predicted
from ..blocks import BlockPlace
from ..board import Board, CallState, Gates
from ..edge import Batched, Edge, walked
from ..errors import ControlError
from ..host import Host, register_model
from ..layout import Arguments, Kind, Layout, Rotary, Site, groups_of
from ..phases import controlled_attention
from ..words import Part
from .encoding import encoded, usual_length
from .positions import rotate
from .stock import not_ours, of_stock

PATCH = 2
"""FLUX packs 2 x 2 latents to a token."""


class ControlledFluxAttnProcessor:
    """FLUX's joint attention with the phases of a session's controls; otherwise the stock processor's arithmetic."""

    def __init__(self, stock: FluxAttnProcessor, board: Board, gates: Gates, site: Site) -> None:
        self.stock, self.board, self.gates, self.site = stock, board, gates, site

    _attention_backend = of_stock("_attention_backend")
    _parallel_config = of_stock("_parallel_config")

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states [B, S, C] -> the same; with encoder_hidden_states (double blocks) a pair (image, text)."""
        state = self.board.now()
        if state is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        return flux_attention(
            self, state, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )[0]


def flux_attention(
    processor: Any,
    state: CallState,
    attn: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    attention_mask: Tensor | None,
    image_rotary_emb: Rotary,
) -> tuple[Any, Tensor]:
    """What a controlled FLUX processor returns, and the image queries [B, S, H, D] before rotation.

    `processor` has its `gates` at this `site` and the `stock` processor.
    """
    projected = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
    q, k, v = (x.unflatten(-1, (-1, attn.head_dim)) for x in projected[:3])
    q, k = attn.norm_q(q), attn.norm_k(k)
    image_q = q
    if attn.added_kv_proj_dim is not None:
        text_q, text_k, text_v = (x.unflatten(-1, (-1, attn.head_dim)) for x in projected[3:])
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        q, k, v = (torch.cat(pair, dim=1) for pair in ((text_q, q), (text_k, k), (text_v, v)))
    out = controlled_attention(
        q,
        k,
        v,
        state=state,
        gates=processor.gates,
        site=processor.site,
        rotary=image_rotary_emb,
        rotate=rotate,
        backend=Backend(processor.stock._attention_backend, processor.stock._parallel_config),
        mask=attention_mask,
    )
    out = out.flatten(2, 3).to(q.dtype)
    if encoder_hidden_states is None:
        return out, image_q
    text, image = out.split_with_sizes(
        [encoder_hidden_states.shape[1], out.shape[1] - encoder_hidden_states.shape[1]], dim=1
    )
    image = attn.to_out[1](attn.to_out[0](image.contiguous()))
    return (image, attn.to_add_out(text.contiguous())), image_q


class ControlledFluxIPProcessor(FluxIPAdapterAttnProcessor):
    """The same in a block with an IP-Adapter, whose own attention to the picture prompt stays as it is."""

    def __init__(self, stock: FluxIPAdapterAttnProcessor, board: Board, gates: Gates, site: Site) -> None:
        torch.nn.Module.__init__(self)
        self.stock, self.board, self.gates, self.site = stock, board, gates, site

    scale = of_stock("scale")

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary = None,
        ip_hidden_states: list[Tensor] | None = None,
        ip_adapter_masks: Tensor | None = None,
    ) -> Any:
        """As ControlledFluxAttnProcessor, with the adapters' term [B, S_img, C] as a third result."""
        stock, state = self.stock, self.board.now()
        if state is None:
            return stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, ip_hidden_states,
                ip_adapter_masks
            )  # fmt: skip
        out, query = flux_attention(
            self, state, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )
        if encoder_hidden_states is None:
            return out
        total = torch.zeros_like(out[0])
        adapters = zip(ip_hidden_states or (), stock.scale, stock.to_k_ip, stock.to_v_ip, strict=False)
        for states, scale, to_k, to_v in adapters:
            k, v = (to(states).unflatten(-1, (attn.heads, attn.head_dim)).flatten(1, -3) for to in (to_k, to_v))
            read = dispatch_attention_fn(query, k, v, backend=stock._attention_backend)
            total = total + scale * read.flatten(2, 3).to(query.dtype)
        return (*out, total)


class FluxEdge(Edge):
    """FLUX.1 and every model of its class (`FluxTransformer2DModel`), tiny-flux among them."""

    name = "flux"
    transformer = FluxTransformer2DModel
    batched = Batched(
        others=("timestep", "guidance"),
        residuals=("controlnet_block_samples", "controlnet_single_block_samples", "joint_attention_kwargs"),
    )

    def sites(self, transformer: Any) -> tuple[Site, ...]:
        """Double blocks first, as they run; the single-stream blocks are the late ones."""
        paths = {
            "double": r"transformer_blocks\.(\d+)\.attn",
            "single": r"single_transformer_blocks\.(\d+)\.attn",
        }
        found = list(walked(transformer, paths))
        return tuple(
            Site(
                n,
                stream,
                local,
                attn.heads,
                attn,
                groups_of(n, len(found), late=stream == "single", editable=stream == "single", last=6 / 57),
            )
            for n, (stream, local, attn) in enumerate(found)
        )

    def processor(self, site: Site, board: Board, gates: Gates) -> Any:
        """Raises ControlError where an unknown processor stands, or under context parallelism."""
        stock: Any = site.module.processor
        kinds = {FluxAttnProcessor: ControlledFluxAttnProcessor, FluxIPAdapterAttnProcessor: ControlledFluxIPProcessor}
        if type(stock) not in kinds:
            raise not_ours(site)
        if stock._parallel_config is not None:
            raise ControlError("controls do not run under context parallelism; load the model without it")
        return kinds[type(stock)](stock, board, gates, site)

    def layout(self, transformer: Any, arguments: Arguments) -> Layout:
        """Text first; image ids are (0, row, column), those of each condition image have another first id."""
        ids = _ids(arguments["img_ids"])
        image = self.image_positions(arguments)
        spans = (image.amax(0) - image.amin(0) + 1).tolist()
        text, rest = arguments["encoder_hidden_states"].shape[1], ids[len(image) :, 0]
        pictures = torch.unique_consecutive(rest, return_counts=True)[1].tolist() if len(rest) else []
        lengths: list[tuple[Kind, int]] = [("text", text), ("image", len(image))]
        lengths += [("condition", int(n)) for n in pictures]
        return Layout.of(lengths, (int(spans[1]), int(spans[2])))

    def blocks(self, transformer: Any) -> tuple[BlockPlace, ...]:
        """Double blocks, then single ones."""
        holders = (transformer.transformer_blocks, transformer.single_transformer_blocks)
        return tuple(BlockPlace(holder, i) for holder in holders for i in range(len(holder)))

    def image_positions(self, arguments: Arguments) -> Tensor:
        """The image's ids (picture, row, column) [S_img, 3]."""
        ids = _ids(arguments["img_ids"])
        return ids[ids[:, 0] == ids[0, 0]]

    def table(self, transformer: Any, positions: Tensor) -> Rotary:
        """(cos, sin) [n, D]."""
        cos, sin = transformer.pos_embed(positions)
        return cos, sin

    def offset(self, shift: tuple[int, ...] | Literal["native"], layout: Layout) -> tuple[float, ...]:
        """Rows and columns; the model knows one picture, beside which another stands a grid to the right."""
        return (0.0, *super().offset(shift, layout))

    def viewed(self, arguments: Arguments, layout: Layout, shown: Tensor) -> Arguments:
        """Image ids and ControlNet residuals of the shown tokens; ids are the same in every row."""
        if shown.ndim == 2:
            raise ControlError("FLUX has one table of positions for all rows; show the same tokens in each")
        ids, size = _ids(arguments["img_ids"]), layout.size
        new = {**arguments, "img_ids": torch.cat([ids[:size][shown], ids[size:]])}
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if arguments.get(name) is not None:
                new[name] = [torch.cat([x[:, :size][:, shown], x[:, size:]], dim=1) for x in arguments[name]]
        return new


@register_model
class FluxHost(Host):
    """Every FLUX.1 pipeline of diffusers, and what has its parts."""

    edge: ClassVar[Edge] = FluxEdge()

    @property
    def unit(self) -> int:
        """Packed latents."""
        return int(self.pipe.vae_scale_factor * PATCH)

    def parts(self, prompt: str, **call: Any) -> tuple[Part, ...]:
        """T5's tokens; `prompt_2` if it is given."""
        pipe = self.pipe
        text = call.get("prompt_2") or prompt
        if hasattr(pipe, "maybe_convert_prompt"):  # textual inversion: one placeholder becomes several tokens
            text = pipe.maybe_convert_prompt(text, pipe.tokenizer_2)
        return (Part(pipe.tokenizer_2, text, 0, call.get("max_sequence_length") or usual_length(pipe)),)

    def encoded_prompt(self, prompt: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """By the pipeline's own encoders."""
        device, length = arguments["hidden_states"].device, arguments["encoder_hidden_states"].shape[1]
        embeds, pooled, _ = self.part("encode_prompt")(
            prompt=[prompt], prompt_2=None, device=device, max_sequence_length=length
        )
        return embeds, pooled

    def encoded_picture(self, picture: Image.Image, arguments: Arguments, layout: Layout) -> Tensor:
        """Packed [1, S_img, C]; beside condition images or channels the row has those of the first picture."""
        rows, columns = layout.grid
        pack = self.part("_pack_latents")
        latent = encoded(self.pipe, picture, rows * self.unit, columns * self.unit)
        packed: Tensor = pack(latent, 1, latent.shape[1], latent.shape[2], latent.shape[3])
        return packed

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """From tokens to a grid."""
        unpacked: Tensor = self.pipe._unpack_latents(latents, height, width, self.pipe.vae_scale_factor)
        return unpacked

    def condition(self, prompt: str | Sequence[str], height: int, width: int, **call: Any) -> Arguments:
        """`guidance_scale` (embedded guidance, 3.5), `max_sequence_length`."""
        pipe, prompts = self.pipe, [prompt] if isinstance(prompt, str) else list(prompt)
        device, length = self.device, call.get("max_sequence_length") or usual_length(pipe)
        embeds, pooled, ids = self.part("encode_prompt")(
            prompt=prompts, prompt_2=None, device=device, max_sequence_length=length
        )
        rows, columns = height // self.unit, width // self.unit
        image_ids = pipe._prepare_latent_image_ids(1, rows, columns, device, embeds.dtype)
        guidance = None
        if pipe.transformer.config.guidance_embeds:
            guidance = torch.full((len(prompts),), float(call.get("guidance_scale") or 3.5), device=device)
        return {
            "encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": ids, "img_ids": image_ids,
            "guidance": guidance,
        }  # fmt: skip

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Arguments) -> Tensor:
        """Of packed latents [B, S_img, C]."""
        timestep = torch.as_tensor(sigma, dtype=latents.dtype, device=latents.device).expand(len(latents))
        return predicted(
            self.pipe.transformer(hidden_states=latents, timestep=timestep, return_dict=False, **condition)
        )


def _ids(ids: Tensor) -> Tensor:
    return ids[0] if ids.ndim == 3 else ids
