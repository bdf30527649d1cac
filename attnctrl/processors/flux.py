"""FLUX: token order [text, image], rotary positions, double- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxTransformer2DModel,
    _get_qkv_projections,
)
from torch import Tensor

from ..architecture import ReferenceRow
from ..attention import Backend
from ..control import Reference, Rotary
from ..errors import ControlError
from ..layout import Arguments, Site, TokenLayout
from ..phases import Gates, controlled_attention
from ..pictures import fit_picture


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate x [B, S, H, D] by (cos, sin) [S, D], interleaved pairs; None leaves it."""
    return x if rotary is None else apply_rotary_emb(x, rotary, sequence_dim=1)


class ControlledFluxAttnProcessor:
    """FLUX's joint attention with the phases of a session's controls; otherwise the stock processor's arithmetic."""

    def __init__(self, stock: FluxAttnProcessor, run: Any, gates: Gates) -> None:
        self.stock, self.run, self.gates = stock, run, gates

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
        projected = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        q, k, v = (x.unflatten(-1, (-1, attn.head_dim)) for x in projected[:3])
        q, k = attn.norm_q(q), attn.norm_k(k)
        if attn.added_kv_proj_dim is not None:
            text_q, text_k, text_v = (x.unflatten(-1, (-1, attn.head_dim)) for x in projected[3:])
            text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
            q, k, v = (torch.cat(pair, dim=1) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        out = controlled_attention(
            q,
            k,
            v,
            state=self.run.call,
            gates=self.gates,
            rotary=image_rotary_emb,
            rotate=rotate,
            backend=Backend(self.stock._attention_backend, self.stock._parallel_config),
        )
        out = out.flatten(2, 3).to(q.dtype)
        if encoder_hidden_states is None:
            return out
        text, image = out.split_with_sizes(
            [encoder_hidden_states.shape[1], out.shape[1] - encoder_hidden_states.shape[1]], dim=1
        )
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())


class FluxArchitecture:
    """FLUX.1 and every model of its class (`FluxTransformer2DModel`), tiny-flux among them."""

    name = "flux"
    transformer = FluxTransformer2DModel

    def sites(self, transformer: Any) -> tuple[Site, ...]:
        """Double blocks first, as they run."""
        blocks = [("double", i, b) for i, b in enumerate(transformer.transformer_blocks)]
        blocks += [("single", i, b) for i, b in enumerate(transformer.single_transformer_blocks)]
        return tuple(Site(n, stream, i, b.attn.heads, b.attn) for n, (stream, i, b) in enumerate(blocks))

    def processor(self, site: Site, run: Any, gates: Gates) -> ControlledFluxAttnProcessor:
        """Raises ControlError where another processor than the stock one stands, or under context parallelism."""
        stock: Any = site.module.processor
        if type(stock) is not FluxAttnProcessor:
            raise ControlError(
                f"{site.label} has a {type(stock).__name__}, which a control here cannot carry yet: "
                "choose other blocks (an IP-Adapter sits in the double blocks: blocks='single') or unload it"
            )
        if stock._parallel_config is not None:
            raise ControlError("controls do not run under context parallelism; load the model without it")
        return ControlledFluxAttnProcessor(stock, run, gates)

    def layout(self, arguments: Arguments) -> TokenLayout:
        """Text first; image ids are (0, row, column), those of condition images have another first id."""
        text = arguments["encoder_hidden_states"].shape[1]
        ids = _ids(arguments["img_ids"])
        image = int((ids[:, 0] == ids[0, 0]).sum())
        spans = (ids[:image].amax(0) - ids[:image].amin(0) + 1).tolist()
        condition = (text + image, text + len(ids)) if len(ids) > image else None
        return TokenLayout((0, text), (text, text + image), (int(spans[1]), int(spans[2])), condition)

    def groups(self, arguments: Arguments) -> int:
        """True CFG runs in calls of its own."""
        return 1

    def shifted(self, transformer: Any, arguments: Arguments, rows: int, columns: int) -> Rotary:
        """(cos, sin) [S_img, D] of the image ids moved by (rows, columns): ShiftPE."""
        ids = _ids(arguments["img_ids"])
        ids = ids[ids[:, 0] == ids[0, 0]]
        cos, sin = transformer.pos_embed(ids + ids.new_tensor([0, rows, columns]))
        return cos, sin

    def reference_row(self, pipe: Any, reference: Reference, arguments: Arguments, layout: TokenLayout) -> ReferenceRow:
        """Encode the picture at the size of this call, and its caption at this call's text length."""
        hidden, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
        if layout.condition is not None:
            raise ControlError("a picture reference does not go with condition images; use a reference prompt")
        latent = self._encode(pipe, reference, layout)
        if latent.shape[-1] != hidden.shape[-1]:
            raise ControlError(
                f"a picture reference gives {latent.shape[-1]} channels and {type(pipe).__name__} wants "
                f"{hidden.shape[-1]}; use a reference prompt (the first of the batch) there"
            )
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(reference.seed))
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=[reference.caption], prompt_2=None, device=hidden.device, max_sequence_length=text.shape[1]
        )
        place = {"device": hidden.device, "dtype": hidden.dtype}
        return ReferenceRow(latent.to(**place), noise.to(**place), embeds.to(text), pooled.to(text))

    def widen(self, arguments: Arguments, rows: Sequence[ReferenceRow], sigma: Tensor, call: int) -> Arguments:
        """Reference rows first. In true CFG's second call their text is the batch's own (negative) text."""
        wide = dict(arguments)
        batch = arguments["hidden_states"].shape[0]
        fronts = {"hidden_states": [row.at(sigma).to(row.latent.dtype) for row in rows]}
        if call == 0:
            fronts["encoder_hidden_states"] = [row.text for row in rows]
            fronts["pooled_projections"] = [row.pooled for row in rows]
        for name in ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance"):
            value = arguments.get(name)
            if value is not None:
                front = fronts.get(name) or [value[:1]] * len(rows)
                wide[name] = torch.cat([*front, value])
        for name in ("controlnet_block_samples", "controlnet_single_block_samples", "joint_attention_kwargs"):
            if arguments.get(name) is not None:
                wide[name] = _padded(arguments[name], batch, len(rows))
        return wide

    def _encode(self, pipe: Any, reference: Reference, layout: TokenLayout) -> Tensor:
        scale = pipe.vae_scale_factor * 2
        height, width = (n * scale for n in layout.grid)
        picture = fit_picture(reference.picture, width, height)
        pixels = pipe.image_processor.preprocess(picture, height=height, width=width)
        vae = pipe.vae
        latent = vae.encode(pixels.to(device=pipe._execution_device, dtype=vae.dtype)).latent_dist.mode()
        latent = (latent - vae.config.shift_factor) * vae.config.scaling_factor
        packed: Tensor = pipe._pack_latents(latent, 1, latent.shape[1], latent.shape[2], latent.shape[3])
        return packed


def _ids(ids: Tensor) -> Tensor:
    return ids[0] if ids.ndim == 3 else ids


def _padded(value: Any, batch: int, rows: int) -> Any:
    """Zeros before every tensor of `value` that has a row per picture: references get no residuals."""
    if isinstance(value, Tensor):
        return torch.cat([value.new_zeros(rows, *value.shape[1:]), value]) if len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: _padded(item, batch, rows) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_padded(item, batch, rows) for item in value)
    return value
