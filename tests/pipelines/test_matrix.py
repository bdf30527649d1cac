"""Every cell of the compatibility matrix: off and after are bit-equal to stock, on acts; the README has the same table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matrix import FEATURES, MODELS, shrink, table
from PIL import Image

from attnctrl import AlignedStyle, ControlError, Reference, StyleAligned, attached

README = Path(__file__).parents[2] / "README.md"
CONTROL = AlignedStyle()
EVERYWHERE = StyleAligned()
PICTURE = AlignedStyle(strength=0.7, reference=Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin"))
CELLS = [
    pytest.param(feature, model, id=f"{feature.name}, {model}")
    for feature in FEATURES
    for model in MODELS
    if model not in feature.absent
]


@pytest.mark.parametrize(("feature", "model"), CELLS)
def test_cell(feature, model, latents_of):
    pipe = MODELS[model]()
    if feature.slow:
        torch._dynamo.reset()
        shrink(pipe)
    guidance = {"guidance_scale": 2.0} if model != "FLUX" else {} if feature.slow else {"cfg": 2.0}

    def run(this, control=None, **more):
        with attached(this, control):
            return latents_of(this, steps=2, **guidance, **more)

    on = [CONTROL] if feature.slow else [CONTROL, PICTURE]
    without = [run(pipe, control) for control in on]
    pipe = feature.use(pipe) or pipe
    pipe.set_progress_bar_config(disable=True)
    if model in feature.refused:
        with pytest.raises(ControlError, match=re.escape(feature.refused[model])):
            run(pipe, EVERYWHERE)
        return
    call = feature.call(pipe)
    stock = run(pipe, **call)
    before = list(pipe.transformer.attn_processors.values())
    assert torch.equal(run(pipe, CONTROL.model_copy(update={"strength": 0.0}), **call), stock)
    results = [run(pipe, control, **call) for control in on]
    torch.testing.assert_close(results[0][:1], stock[:1], atol=feature.lead, rtol=feature.lead)
    for result, leads in zip(results, (1, 0), strict=False):
        assert (result[leads:] - stock[leads:]).abs().flatten(1).amax(1).min() > 1e-2
        assert result.dtype == stock.dtype
    if feature.same is None:
        assert (results[0] - without[0]).abs().max() > 1e-4, "the feature acts under the control"
    else:
        torch.testing.assert_close(results, without, atol=feature.same, rtol=feature.same)
    if not feature.slow:
        assert torch.equal(run(pipe, StyleAligned(strength=0), **call), stock)
        assert torch.isfinite(run(pipe, EVERYWHERE, **call)).all()
    assert torch.equal(run(pipe, **call), stock)
    assert all(a is b for a, b in zip(before, pipe.transformer.attn_processors.values(), strict=True))


def test_the_readme_has_this_table():
    text = README.read_text()
    assert text.split("<!-- matrix -->")[1].split("<!-- /matrix -->")[0].strip() == table()
