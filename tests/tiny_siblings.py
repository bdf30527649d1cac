"""Every diffusers pipeline of FLUX and SD3 as a tiny random one, and the arguments that its call needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import (
    FluxControlNetModel,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from tiny import clip_parts, t5_parts, tiny_parts, tiny_sd3_parts
from torch import nn
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

SIDE = 64
PROMPTS = ["a fox", "a teapot", "a castle"]
COLOURS = ("red", "green", "blue")


def pictures(n: int) -> list[Image.Image]:
    """Squares of one colour each."""
    return [Image.new("RGB", (SIDE, SIDE), colour) for colour in COLOURS[:n]]


def masks(n: int) -> list[Image.Image]:
    """The left half is kept, the right half is painted anew."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    return [mask] * n


def _none(n: int) -> dict[str, Any]:
    return {}


def _start(n: int) -> dict[str, Any]:
    return {"image": pictures(n), "strength": 0.7, "num_inference_steps": 3}


def _paint(n: int) -> dict[str, Any]:
    return {**_start(n), "mask_image": masks(n)}


def _guide(n: int) -> dict[str, Any]:
    return {"control_image": pictures(n)}


def _fill(n: int) -> dict[str, Any]:
    return {"image": pictures(n), "mask_image": masks(n)}


def _kontext(n: int) -> dict[str, Any]:
    return {"image": pictures(n), "max_area": SIDE * SIDE, "_auto_resize": False}


def _kontext_paint(n: int) -> dict[str, Any]:
    return {**_kontext(n), "mask_image": masks(n), "strength": 0.7, "num_inference_steps": 3}


def _control_paint(n: int) -> dict[str, Any]:
    return {"control_image": pictures(n), "control_mask": torch.cat([torch.ones(n, 1, SIDE, SIDE // 2), torch.zeros(n, 1, SIDE, SIDE // 2)], -1)}  # fmt: skip


@dataclass(frozen=True)
class Sibling:
    """A pipeline class by name, what its call needs for n prompts, and what sets its transformer apart."""

    name: str
    inputs: Callable[[int], dict[str, Any]] = _none
    channels: int = 16
    controlnet: int | None = None
    """Extra channels of its ControlNet; None: it has none."""

    @property
    def stock(self) -> type:
        """The diffusers class."""
        cls: type = getattr(diffusers, self.name)
        return cls

    @property
    def sd3(self) -> bool:
        return self.name.startswith("StableDiffusion3")

    @property
    def guided(self) -> dict[str, Any] | None:
        """The arguments of its classifier-free guidance, None where it has none."""
        names = inspect.signature(self.stock.__call__).parameters
        if self.sd3:
            return {"guidance_scale": 3.0, "negative_prompt": ["a rag"] * len(PROMPTS)}
        if "true_cfg_scale" in names:
            return {"true_cfg_scale": 2.0, "negative_prompt": ["a rag"] * len(PROMPTS)}
        return None

    def build(self, cls: type | None = None) -> Any:
        """A silent pipeline with the same weights at each call, of class `cls` or the stock one."""
        parts = tiny_sd3_parts() if self.sd3 else tiny_parts()
        if self.channels != 16:
            parts["transformer"] = wide_transformer(parts["transformer"], self.channels)
        if self.controlnet is not None:
            parts["controlnet"] = controlnet_of(parts["transformer"], self.controlnet)
        pipe = (cls or self.stock)(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, n: int = len(PROMPTS)) -> dict[str, Any]:
        """A whole call with n prompts, without guidance; picture i is seeded with i."""
        guidance = {"guidance_scale": 1.0} if self.sd3 else {}
        return {
            "prompt": PROMPTS[:n], "num_inference_steps": 2, "height": SIDE, "width": SIDE, "max_sequence_length": 12,
            "output_type": "latent", "generator": [torch.Generator().manual_seed(i) for i in range(n)],
            **guidance, **self.inputs(n),
        }  # fmt: skip


FLUX = (
    Sibling("FluxPipeline"),
    Sibling("FluxImg2ImgPipeline", _start),
    Sibling("FluxInpaintPipeline", _paint),
    Sibling("FluxControlNetPipeline", _guide, controlnet=0),
    Sibling("FluxControlNetImg2ImgPipeline", lambda n: {**_start(n), **_guide(n)}, controlnet=0),
    Sibling("FluxControlNetInpaintPipeline", lambda n: {**_paint(n), **_guide(n)}, controlnet=0),
    Sibling("FluxKontextPipeline", _kontext),
    Sibling("FluxKontextInpaintPipeline", _kontext_paint),
    Sibling("FluxFillPipeline", _fill, channels=96),
    Sibling("FluxControlPipeline", _guide, channels=32),
    Sibling("FluxControlImg2ImgPipeline", lambda n: {**_start(n), **_guide(n)}, channels=32),
    Sibling("FluxControlInpaintPipeline", lambda n: {**_paint(n), **_guide(n)}, channels=32),
)
SD3 = (
    Sibling("StableDiffusion3Pipeline"),
    Sibling("StableDiffusion3Img2ImgPipeline", _start),
    Sibling("StableDiffusion3InpaintPipeline", _paint),
    Sibling("StableDiffusion3ControlNetPipeline", _guide, controlnet=0),
    Sibling("StableDiffusion3ControlNetInpaintingPipeline", _control_paint, controlnet=1),
)
SIBLINGS = (*FLUX, *SD3)


def wide_transformer(narrow: Any, channels: int) -> FluxTransformer2DModel:
    """The same FLUX transformer with more input channels (Fill, Control); the output keeps its own."""
    torch.manual_seed(8)
    config = {name: value for name, value in narrow.config.items() if not name.startswith("_")}
    wide = FluxTransformer2DModel(**{**config, "in_channels": channels, "out_channels": 16})
    own = {name: p for name, p in narrow.state_dict().items() if not name.startswith("x_embedder")}
    wide.load_state_dict(own, strict=False)
    nn.init.normal_(wide.x_embedder.weight, std=0.3)
    return wide.eval()


def controlnet_of(transformer: Any, extra: int) -> Any:
    """A random ControlNet of a transformer, of one block, that acts."""
    torch.manual_seed(9)
    if isinstance(transformer, FluxTransformer2DModel):
        net = FluxControlNetModel.from_transformer(transformer, 1, 1, 16, 4, load_weights_from_transformer=False)
    else:
        net = SD3ControlNetModel.from_transformer(transformer, 1, extra, load_weights_from_transformer=False)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "controlnet" in name or "pos_embed_input" in name:
                p.normal_(std=0.2)
    return net.eval()


def redux() -> FluxPriorReduxPipeline:
    """A random Redux prior for the tiny FLUX: a picture gives 4 tokens of width 16 after the text's."""
    torch.manual_seed(10)
    config = SiglipVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)  # fmt: skip
    (tokenizer, text_encoder), (tokenizer_2, text_encoder_2) = clip_parts(), t5_parts()
    return FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        image_embedder=ReduxImageEncoder(redux_dim=16, txt_in_features=16).eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )
