"""The same control in every diffusers pipeline of FLUX and SD3: off is stock, on acts, after is stock again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from tiny import tiny_flux
from tiny_siblings import PROMPTS, SIBLINGS, SIDE, Sibling, pictures, redux

from attnctrl import AlignedStyle, Reference, attached, controlled

GOLD = Reference(picture=Image.new("RGB", (SIDE, SIDE), "gold"), caption="a coin")
GREY = Reference(picture=Image.effect_noise((SIDE, SIDE), 90).convert("RGB"), caption="a coin")
MODES = ("plain", "guided", "two images", "embeddings")
CELLS = [
    pytest.param(sibling, mode, id=f"{sibling.name}, {mode}")
    for sibling in SIBLINGS
    for mode in MODES
    if mode != "guided" or sibling.guided is not None
]


def call_of(sibling: Sibling, pipe: Any, mode: str) -> dict[str, Any]:
    """The arguments of one call, its generators fresh; SD3's ControlNet pipelines draw from torch's own as well."""
    torch.manual_seed(0)
    arguments = sibling.arguments()
    if mode == "guided":
        arguments.update(sibling.guided or {})
    if mode == "two images":
        arguments.update(num_images_per_prompt=2, generator=torch.Generator().manual_seed(0))
    if mode == "embeddings":
        prompt, more = arguments.pop("prompt"), {"prompt_3": None, "do_classifier_free_guidance": False}
        said = pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=12, **(more if sibling.sd3 else {}))
        arguments.update(prompt_embeds=said[0], pooled_prompt_embeds=said[2 if sibling.sd3 else 1])
    return arguments


@pytest.mark.parametrize(("sibling", "mode"), CELLS)
def test_off_on_and_after(sibling, mode):
    pipe = sibling.build()
    leads = 2 if mode == "two images" else 1
    before = list(pipe.transformer.attn_processors.values())

    def run(this=pipe, **more):
        return this(**call_of(sibling, this, mode), **more).images

    stock = run()
    with attached(pipe, AlignedStyle(strength=0), images_per_prompt=leads) as session:
        assert session.sites_of(session.controls[0]), "processors are installed"
        assert pipe.transformer.attn_processors.values() != before
        assert torch.equal(run(), stock)
    with attached(pipe, AlignedStyle(), images_per_prompt=leads):
        shared = run()
    torch.testing.assert_close(shared[:leads], stock[:leads], atol=1e-5, rtol=1e-5)
    assert (shared[leads:] - stock[leads:]).abs().flatten(1).amax(1).min() > 1e-2
    assert all(a is b for a, b in zip(before, pipe.transformer.attn_processors.values(), strict=True))
    assert torch.equal(run(), stock)
    ours = controlled(sibling.stock)(**pipe.components)
    ours.set_progress_bar_config(disable=True)
    assert torch.equal(run(ours), stock)
    assert torch.equal(run(ours, control=AlignedStyle()), shared)


@pytest.mark.parametrize("mode", ["plain", "guided"])
@pytest.mark.parametrize("sibling", SIBLINGS, ids=lambda s: s.name)
def test_a_picture_leads(sibling, mode):
    """The picture's row has its own latent and text; condition channels and tokens are those of the first row."""
    if mode == "guided" and sibling.guided is None:
        pytest.skip("it has no classifier-free guidance")
    pipe = sibling.build()

    def run():
        return pipe(**call_of(sibling, pipe, mode)).images

    stock, results = run(), []
    for reference in (GOLD, GREY):
        with attached(pipe, AlignedStyle(reference=reference)) as session:
            results.append(run())
            assert session.acted == [session.calls]
    for a, b, least in ((results[0], stock, 1e-2), (results[1], stock, 1e-2), (results[0], results[1], 1e-4)):
        assert a.shape == stock.shape
        assert (a - b).abs().flatten(1).amax(1).min() > least, "every row follows the picture"
    with attached(pipe, AlignedStyle(strength=0, reference=GOLD)):
        assert torch.equal(run(), stock)
    assert torch.equal(run(), stock)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_redux_embeddings_carry_a_control(cfg, latents_of):
    """FluxPriorReduxPipeline turns a picture into prompt embeddings; one picture a prompt, joined to a batch."""
    prior, pipe = redux(), tiny_flux(cls=FluxPipeline)
    said = [prior(image=picture, prompt=prompt) for picture, prompt in zip(pictures(3), PROMPTS, strict=True)]
    embeds, pooled = (torch.cat([x[name] for x in said]) for name in ("prompt_embeds", "pooled_prompt_embeds"))
    call = {"cfg": cfg, "steps": 2, "prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    stock = latents_of(pipe, **call)
    with attached(pipe, AlignedStyle(strength=0)):
        assert torch.equal(latents_of(pipe, **call), stock)
    with attached(pipe, AlignedStyle()):
        shared = latents_of(pipe, **call)
    torch.testing.assert_close(shared[:1], stock[:1], atol=1e-5, rtol=1e-5)
    assert (shared[1:] - stock[1:]).abs().amax((1, 2)).min() > 1e-2
    with attached(pipe, AlignedStyle(reference=GOLD)):
        assert (latents_of(pipe, **call) - stock).abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(latents_of(pipe, **call), stock)
