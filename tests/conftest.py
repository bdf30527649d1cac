"""Shared fixtures: one thread layout, tiny random pipelines, and the inputs of one transformer call."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from run_fixtures import copied, drawer, single, small, whole  # noqa: F401
from tiny import tiny_flux

from attnctrl import registry

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

PROMPTS = ["a fox", "a teapot", "a castle", "a moon", "an owl", "a car", "a tree", "a key", "a bell"]


@pytest.fixture(autouse=True)
def the_usual_backend() -> Iterator[None]:
    """diffusers' `set_attention_backend` changes the backend of every model of the process: put it back."""
    before = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.fixture
def pipe() -> FluxPipeline:
    """A random FLUX pipeline."""
    return tiny_flux()


@pytest.fixture
def latents_of() -> Callable[..., torch.Tensor]:
    """latents_of(pipe, n, steps, ...) -> final packed latents of the first n prompts, picture i seeded with i."""

    def run(pipe: Any, n: int = 3, steps: int = 3, cfg: float = 1.0, seeds: Any = None, **more: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(s) for s in (seeds or range(n))]
        if cfg > 1:
            more = {"negative_prompt": ["a rag"] * n, "true_cfg_scale": cfg, **more}
        options = {
            "prompt": PROMPTS[:n], "num_inference_steps": steps, "height": 64, "width": 64,
            "max_sequence_length": 12, "output_type": "latent", "generator": generators, **more,
        }  # fmt: skip
        result: torch.Tensor = pipe(**options).images
        return result

    return run


@pytest.fixture
def table() -> Iterator[None]:
    """What is registered within the test goes with it."""
    registry.controls()
    before = dict(registry._controls), dict(registry._loaded)
    yield
    for now, then in zip((registry._controls, registry._loaded), before, strict=True):
        now.clear()
        now.update(then)
    for name in [name for name in sys.modules if name.startswith("attnctrl_loaded_")]:
        del sys.modules[name]
