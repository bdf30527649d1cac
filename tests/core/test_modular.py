"""diffusers' modular pipelines, which have no `__call__` that could be wrapped: controls attach to their transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.modular_pipelines import FluxAutoBlocks, StableDiffusion3AutoBlocks
from PIL import Image
from tiny import tiny_parts, tiny_sd3_parts
from torch import Tensor

from attnctrl import NAG, AlignedStyle, Control, ControlError, Reference, SoftPAG, Where, attached

GOLD = Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin")
MODELS = {"FLUX": (FluxAutoBlocks, tiny_parts), "SD3": (StableDiffusion3AutoBlocks, tiny_sd3_parts)}
CONTROLS = {
    "the first leads": AlignedStyle(strength=0.5),
    "a guide": SoftPAG(where=Where(heads="L1H1 L2H3")),
    "both": [AlignedStyle(), SoftPAG(where=Where(heads="L1H1"))],
}


@pytest.fixture(params=MODELS)
def pipe(request: pytest.FixtureRequest) -> Any:
    blocks, parts = MODELS[request.param]
    made = blocks().init_pipeline()
    made.update_components(**parts())
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, control: Control | list[Control] | None, **more: Any) -> Tensor:
    with attached(pipe, control):
        result: Tensor = pipe(
            prompt=["a fox", "a teapot"], num_inference_steps=3, height=64, width=64, max_sequence_length=12,
            generator=torch.Generator().manual_seed(0), output_type="latent", output="latents", **more,
        )  # fmt: skip
    return result


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_act_and_leave_no_trace(name, pipe):
    control = CONTROLS[name]
    controls = control if isinstance(control, list) else [control]
    before = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    stock = run(pipe, None)
    assert torch.equal(run(pipe, [one.model_copy(update={"strength": 0.0}) for one in controls]), stock)
    found = run(pipe, control)
    assert (found - stock)[1].abs().max() > 1e-3
    after = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert torch.equal(run(pipe, None), stock)


def test_a_leading_prompt_is_as_without(pipe):
    torch.testing.assert_close(run(pipe, AlignedStyle())[0], run(pipe, None)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("control", [NAG(prompt="blurry"), AlignedStyle(reference=GOLD)], ids=["a prompt", "a picture"])
def test_what_needs_the_encoders_is_refused(control, pipe):
    with pytest.raises(ControlError, match=r"ModularPipeline has no `\w+` that this control can ask"):
        run(pipe, control)
