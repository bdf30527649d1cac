"""FLUX: token order [text, image], rotary positions, double- and single-stream blocks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
    FluxTransformer2DModel,
    _get_qkv_projections,
)
from torch import Tensor

from ..attention import Backend
from ..control import Reference, Rotary
from ..errors import ControlError
from ..layout import Arguments, Site, TokenLayout, groups_of
from ..phases import Gates, controlled_attention
from ..rows import PictureRow
from .encoding import encoded, row_of


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate x [B, S, H, D] by (cos, sin) [S, D], interleaved pairs; None leaves it."""
    return x if rotary is None else apply_rotary_emb(x, rotary, sequence_dim=1)


class ControlledFluxAttnProcessor:
    """FLUX's joint attention with the phases of a session's controls; otherwise the stock processor's arithmetic."""

    def __init__(self, stock: FluxAttnProcessor, run: Any, gates: Gates, site: Site) -> None:
        self.stock, self.run, self.gates, self.site = stock, run, gates, site

    @property
    def _attention_backend(self) -> Any:
        return self.stock._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.stock._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return self.stock._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.stock._parallel_config = value

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states [B, S, C] -> the same; with encoder_hidden_states (double blocks) a pair (image, text)."""
        return flux_attention(self, attn, hidden_states, encoder_hidden_states, image_rotary_emb)[0]


def flux_attention(
    processor: Any, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None, image_rotary_emb: Rotary
) -> tuple[Any, Tensor]:
    """What a controlled FLUX processor returns, and the image queries [B, S, H, D] before rotation.

    `processor` has the session's `run`, its `gates` at this `site` and the `stock` processor.
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
        state=processor.run.call,
        gates=processor.gates,
        site=processor.site,
        rotary=image_rotary_emb,
        rotate=rotate,
        backend=Backend(processor.stock._attention_backend, processor.stock._parallel_config),
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

    def __init__(self, stock: FluxIPAdapterAttnProcessor, run: Any, gates: Gates, site: Site) -> None:
        torch.nn.Module.__init__(self)
        self.stock, self.run, self.gates, self.site = stock, run, gates, site

    @property
    def scale(self) -> Any:
        """The adapters' scales, which the pipeline may set."""
        return self.stock.scale

    @scale.setter
    def scale(self, value: Any) -> None:
        self.stock.scale = value

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
        out, query = flux_attention(self, attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        if encoder_hidden_states is None:
            return out
        stock = self.stock
        total = torch.zeros_like(out[0])
        adapters = zip(ip_hidden_states or (), stock.scale, stock.to_k_ip, stock.to_v_ip, strict=False)
        for states, scale, to_k, to_v in adapters:
            k, v = (to(states).unflatten(-1, (attn.heads, attn.head_dim)).flatten(1, -3) for to in (to_k, to_v))
            read = dispatch_attention_fn(query, k, v, backend=stock._attention_backend)
            total = total + scale * read.flatten(2, 3).to(query.dtype)
        return (*out, total)


class FluxArchitecture:
    """FLUX.1 and every model of its class (`FluxTransformer2DModel`), tiny-flux among them."""

    name = "flux"
    rotary = True
    transformer = FluxTransformer2DModel

    def sites(self, transformer: Any) -> tuple[Site, ...]:
        """Double blocks first, as they run; the single-stream blocks are the late ones."""
        blocks = [("double", i, b) for i, b in enumerate(transformer.transformer_blocks)]
        blocks += [("single", i, b) for i, b in enumerate(transformer.single_transformer_blocks)]
        return tuple(
            Site(n, stream, i, b.attn.heads, b.attn, groups_of(n, len(blocks), stream == "single"))
            for n, (stream, i, b) in enumerate(blocks)
        )

    def processor(self, site: Site, run: Any, gates: Gates) -> Any:
        """Raises ControlError where an unknown processor stands, or under context parallelism."""
        stock: Any = site.module.processor
        kinds = {FluxAttnProcessor: ControlledFluxAttnProcessor, FluxIPAdapterAttnProcessor: ControlledFluxIPProcessor}
        if type(stock) not in kinds:
            raise ControlError(
                f"{site.label} has a {type(stock).__name__}, which a control here cannot carry: "
                "choose other blocks, or put the model's own processors back"
            )
        if stock._parallel_config is not None:
            raise ControlError("controls do not run under context parallelism; load the model without it")
        return kinds[type(stock)](stock, run, gates, site)

    def layout(self, transformer: Any, arguments: Arguments) -> TokenLayout:
        """Text first; image ids are (0, row, column), those of condition images have another first id."""
        text = arguments["encoder_hidden_states"].shape[1]
        ids = _ids(arguments["img_ids"])
        image = int((ids[:, 0] == ids[0, 0]).sum())
        spans = (ids[:image].amax(0) - ids[:image].amin(0) + 1).tolist()
        condition = (text + image, text + len(ids)) if len(ids) > image else None
        return TokenLayout((0, text), (text, text + image), (int(spans[1]), int(spans[2])), condition)

    def conditional(self, pipe: Any, arguments: Arguments, call: int) -> tuple[bool, ...]:
        """True CFG runs in calls of its own: the second of a step has the negative prompts."""
        return (call == 0,)

    def shifted(self, transformer: Any, arguments: Arguments, rows: int, columns: int) -> Rotary:
        """(cos, sin) [S_img, D] of the image ids moved by (rows, columns): ShiftPE."""
        ids = _ids(arguments["img_ids"])
        ids = ids[ids[:, 0] == ids[0, 0]]
        cos, sin = transformer.pos_embed(ids + ids.new_tensor([0, rows, columns]))
        return cos, sin

    def picture_row(self, pipe: Any, reference: Reference, arguments: Arguments, layout: TokenLayout) -> PictureRow:
        """Encode the picture at the size of this call, and its caption at this call's text length.

        Beside condition images or channels (Kontext, Fill, Control) the row has those of the first picture.
        """
        hidden = arguments["hidden_states"]
        unit = pipe.vae_scale_factor * 2
        latent = encoded(pipe, reference, layout.grid[0] * unit, layout.grid[1] * unit)
        latent = pipe._pack_latents(latent, 1, latent.shape[1], latent.shape[2], latent.shape[3])
        embeds, pooled = self.encoded_prompt(pipe, reference.caption, arguments)
        return row_of(pipe, reference, latent, hidden, latent.shape[1], embeds, pooled)

    def encoded_prompt(self, pipe: Any, prompt: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """By the pipeline's own encoders."""
        device, length = arguments["hidden_states"].device, arguments["encoder_hidden_states"].shape[1]
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=[prompt], prompt_2=None, device=device, max_sequence_length=length
        )
        return embeds, pooled

    def blocks(self, transformer: Any) -> list[tuple[torch.nn.ModuleList, int]]:
        """Double blocks, then single ones."""
        holders = (transformer.transformer_blocks, transformer.single_transformer_blocks)
        return [(holder, i) for holder in holders for i in range(len(holder))]

    def guidance_scale(self, pipe: Any) -> float | None:
        """None: FLUX pipelines do not keep their `true_cfg_scale`."""
        return None

    def position_hooks(self, transformer: Any, run: Any) -> tuple[()]:
        """None: shared keys are rotated to their places."""
        return ()


def _ids(ids: Tensor) -> Tensor:
    return ids[0] if ids.ndim == 3 else ids
