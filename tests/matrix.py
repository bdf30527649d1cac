"""The compatibility matrix as data: what diffusers offers beside a control, and how a test sets it up.

`python tests/matrix.py` prints the tables of the README.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.hooks import apply_group_offloading
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from peft import LoraConfig
from tiny import tiny_flux, tiny_sd3
from tiny_siblings import SIBLINGS
from torch import nn

MODELS: dict[str, Callable[[], Any]] = {
    "FLUX": tiny_flux,
    "SD3": tiny_sd3,
    "SD3.5": lambda: tiny_sd3(qk_norm="rms_norm", dual=(0, 1)),
}
YES = "yes"
PERTURBED = "load StableDiffusion3Pipeline"


@dataclass(frozen=True)
class Feature:
    """One row: `use` sets it up and returns the pipeline, or None where it changed the given one.

    same: the tolerance to which a controlled run equals the one without the feature; None where the feature changes it.
    lead: the tolerance of the reference row to its stock result. slow: on two blocks, without a picture.
    call: more arguments of the call, by model. Models in `refused` raise ControlError with that text; those in `absent`
    do not have it in diffusers, and why.
    """

    name: str
    use: Callable[[Any], Any]
    same: float | None = None
    lead: float = 1e-5
    slow: bool = False
    call: Callable[[Any], dict[str, Any]] = lambda pipe: {}
    refused: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def cell(self, model: str) -> str:
        """What the README says of it."""
        if model in self.refused:
            return f"refused: {self.refused[model]}"
        return f"– ({self.absent[model]})" if model in self.absent else YES


def parts(pipe: Any) -> list[nn.Module]:
    """The modules of a pipeline in the order of its offloading."""
    return [m for name in pipe.model_cpu_offload_seq.split("->") if (m := getattr(pipe, name)) is not None]


def shrink(pipe: Any) -> None:
    """Leave two blocks, the last of each kind."""
    transformer = pipe.transformer
    if isinstance(transformer, FluxTransformer2DModel):
        transformer.single_transformer_blocks = transformer.single_transformer_blocks[-1:]
        transformer.transformer_blocks = transformer.transformer_blocks[-1:]
    else:
        transformer.transformer_blocks = transformer.transformer_blocks[-2:]


def lora(pipe: Any) -> None:
    torch.manual_seed(7)
    targets = ["to_q", "to_k", "to_v", "add_k_proj", "proj_mlp"]
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))


def ip_adapter(pipe: Any) -> None:
    torch.manual_seed(11)
    transformer, width = pipe.transformer, 64
    if isinstance(transformer, FluxTransformer2DModel):
        weights = {}
        for i in range(len(transformer.transformer_blocks)):
            for name in ("to_k_ip", "to_v_ip"):
                weights |= {f"{i}.{name}.weight": torch.randn(width, 16) / 3, f"{i}.{name}.bias": torch.zeros(width)}
        shapes = {"proj.weight": (64, 8), "proj.bias": (64,), "norm.weight": (16,), "norm.bias": (16,)}
        transformer._load_ip_adapter_weights(
            {"image_proj": {name: torch.randn(shape) for name, shape in shapes.items()}, "ip_adapter": weights}
        )
        return
    weights = {}
    for i in range(len(transformer.attn_processors)):
        weights |= {f"{i}.to_{n}_ip.weight": torch.randn(width, width) / 8 for n in "kv"}
        weights |= {f"{i}.norm_{n}.weight": torch.ones(16) for n in ("q", "k", "ip_k")}
        weights[f"{i}.norm_ip.linear.weight"] = torch.randn(2 * width, 64) / 8
        weights[f"{i}.norm_ip.linear.bias"] = torch.zeros(2 * width)
    picture = IPAdapterTimeImageProjection(8, width, 64, heads=1, num_queries=4, timestep_in_dim=320)
    transformer._load_ip_adapter_weights({"image_proj": picture.state_dict(), "ip_adapter": weights})


def picture_prompts(pipe: Any) -> dict[str, Any]:
    embeds = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(12))
    if isinstance(pipe.transformer, FluxTransformer2DModel):
        return {"ip_adapter_image_embeds": [embeds], "negative_ip_adapter_image_embeds": [0 * embeds]}
    return {"ip_adapter_image_embeds": torch.cat([0 * embeds, embeds])}


def model_offload(pipe: Any) -> None:
    hook = None
    for module in parts(pipe):
        _, hook = cpu_offload_with_hook(module, "cpu", prev_module_hook=hook)


def sequential_offload(pipe: Any) -> None:
    for module in parts(pipe):
        cpu_offload(module, torch.device("cpu"), offload_buffers=True)


def group_offload(kind: str) -> Callable[[Any], None]:
    def use(pipe: Any) -> None:
        place = torch.device("cpu")
        for module in parts(pipe):
            apply_group_offloading(module, place, place, offload_type=kind, num_blocks_per_group=1)

    return use


class Int8Linear(nn.Module):
    """A quantised linear layer without a `.weight` of its kind: int8 with a scale per output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.packed.to(x.dtype) * self.scale, self.bias)


def int8(pipe: Any) -> None:
    for block in [m for name, m in pipe.transformer.named_children() if "blocks" in name]:
        for module in [m for m in block.modules() if not isinstance(m, Int8Linear)]:
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))


def bfloat16(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def fp8(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def first_block_cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=9.0))


def compiled_blocks(pipe: Any) -> None:
    for name, blocks in pipe.transformer.named_children():
        if name.endswith("transformer_blocks"):
            for block in blocks:
                block.compile(backend="eager", fullgraph=True)


def compiled(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def scheduler(cls: Any, **options: Any) -> Callable[[Any], None]:
    def use(pipe: Any) -> None:
        pipe.scheduler = cls(**options)

    return use


def heun(pipe: Any) -> None:
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=1.0)
    stock = pipe.scheduler.set_timesteps

    def set_timesteps(
        num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> Any:
        return stock(num_inference_steps or len(sigmas), device=device)

    pipe.scheduler.set_timesteps = set_timesteps


def saved(pipe: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        return DiffusionPipeline.from_pretrained(folder)


def parallel(pipe: Any) -> None:
    for processor in pipe.transformer.attn_processors.values():
        processor._parallel_config = object()


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.5}
SHIFTED = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
NO_FUSED = "call unfuse_qkv_projections() first"
SKIP = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
SD3S = ("SD3", "SD3.5")
FEATURES = (
    Feature("LoRA (PEFT)", lora),
    Feature("IP-Adapter", ip_adapter, call=picture_prompts),
    Feature("model offload", model_offload, same=0),
    Feature("sequential offload", sequential_offload, same=1e-5),
    Feature("group offload, by block", group_offload("block_level"), same=0),
    Feature("group offload, by leaf", group_offload("leaf_level"), same=0),
    Feature("bfloat16", bfloat16, lead=0.1),
    Feature("fp8 layerwise casting", fp8),
    Feature("quantised linear layers", int8),
    Feature("FirstBlockCache", first_block_cache, absent=dict.fromkeys(SD3S, "no cache for SD3 in diffusers")),
    Feature("skip-layer guidance", lambda p: None, call=lambda p: SKIP, absent={"FLUX": "SD3's alone"}),
    Feature("fused QKV", lambda p: p.transformer.fuse_qkv_projections(), same=1e-4, refused={"SD3.5": NO_FUSED}),
    Feature("attention backends", lambda p: p.transformer.set_attention_backend("_native_math"), same=1e-4,
            absent=dict.fromkeys(SD3S, "SD3 ignores them in diffusers")),
    Feature("torch.compile, every block", compiled_blocks, same=1e-4, slow=True),
    Feature("torch.compile, whole model", compiled, same=1e-4, slow=True),
    Feature("Heun", heun, lead=1e-4),
    Feature("DPM-Solver++", scheduler(DPMSolverMultistepScheduler, **FLOW, **SHIFTED), lead=1e-4),
    Feature("UniPC", scheduler(UniPCMultistepScheduler, **FLOW, **SHIFTED), lead=1e-4),
    Feature("shared components, `from_pipe`", lambda p: type(p).from_pipe(p), same=0),
    Feature("saved and loaded by stock diffusers", saved, same=1e-4),
    Feature("context parallelism", parallel, refused={"FLUX": "load the model without it"},
            absent=dict.fromkeys(SD3S, "no plan for SD3 in diffusers")),
)  # fmt: skip


def table() -> str:
    """Both tables of the README in Markdown: features by model, and the pipelines."""
    lines = [f"| | {' | '.join(MODELS)} |", "|---" * (len(MODELS) + 1) + "|"]
    lines += [f"| {f.name} | {' | '.join(f.cell(model) for model in MODELS)} |" for f in FEATURES]
    lines += ["", "| pipeline | guidance in two passes | a picture leads |", "|---|---|---|"]
    for sibling in SIBLINGS:
        guidance = "–" if sibling.guided is None else "CFG" if sibling.sd3 else "true CFG"
        lines.append(f"| `{sibling.name}` | {guidance} | {YES} |")
    lines.append(f"| `FluxPriorReduxPipeline` into `FluxPipeline` | true CFG | {YES} |")
    lines.append(f"| `StableDiffusion3PAGPipeline` | – | refused: {PERTURBED} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
