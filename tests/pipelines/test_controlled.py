"""Controlled classes: made once, stock's signature and folders, settings, negative prompts, amended prompts, loading."""

from __future__ import annotations

import inspect
import json
from typing import Literal

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from matrix import PERTURBED
from tiny import tiny_flux, tiny_sd3
from tiny_siblings import SIBLINGS, pictures

from attnctrl import (
    AlignedStyle,
    ControlError,
    ControlledFluxPipeline,
    ControlledStableDiffusion3Pipeline,
    Recipe,
    controlled,
    generate,
    load,
)
from attnctrl.pipelines.settings import ModelSettings

SMALL = ModelSettings(height=48, width=64, max_sequence_length=12, num_inference_steps=2)
FAMILIES = [(tiny_flux, FluxPipeline, FluxImg2ImgPipeline), (tiny_sd3, StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline)]  # fmt: skip


class Said(AlignedStyle):
    """A control that amends prompts."""

    kind: Literal["said"] = "said"
    words: str = ", fox"

    def amend(self, prompt: str) -> str:
        return prompt + self.words


def silent(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("sibling", SIBLINGS, ids=lambda s: s.name)
def test_the_class_is_made_once_with_stock_signature_and_name(sibling):
    cls = controlled(sibling.stock)
    assert cls is controlled(sibling.stock) is controlled(cls)
    assert issubclass(cls, sibling.stock)
    assert cls.__name__ == f"Controlled{sibling.name}"
    theirs = list(inspect.signature(sibling.stock.__call__).parameters.values())
    assert list(inspect.signature(cls.__call__).parameters.values())[:-2] == theirs
    assert list(inspect.signature(cls.__call__).parameters)[-2:] == ["control", "source"]
    assert inspect.signature(cls.__init__) == inspect.signature(sibling.stock.__init__)


def test_the_two_named_classes_are_the_ones_made():
    assert controlled(FluxPipeline) is ControlledFluxPipeline
    assert controlled(StableDiffusion3Pipeline) is ControlledStableDiffusion3Pipeline
    with pytest.raises(ControlError, match="FluxPriorReduxPipeline has no FluxTransformer2DModel or SD3"):
        controlled(FluxPriorReduxPipeline)
    with pytest.raises(ControlError, match=f"attention processors by itself; {PERTURBED}"):
        controlled(StableDiffusion3PAGPipeline)


@pytest.mark.parametrize(("tiny", "stock", "sibling"), FAMILIES, ids=["flux", "sd3"])
def test_folders_are_stock_and_settings_travel(tiny, stock, sibling, tmp_path):
    ours = tiny(cls=controlled(stock))
    ours.settings = SMALL
    ours.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["_class_name"] == stock.__name__
    plain = silent(DiffusionPipeline.from_pretrained(tmp_path / "model"))
    assert type(plain) is stock
    again = load(tmp_path / "model", device="cpu")
    assert type(again) is controlled(stock)
    prompts = {"prompt": ["a fox", "a moon"], "guidance_scale": 2.0, "output_type": "pt"}
    seed = torch.Generator().manual_seed
    expected = plain(**prompts, **SMALL.given(), generator=seed(0)).images
    assert expected.shape[-2:] == (48, 64)
    assert torch.equal(again(**prompts, generator=seed(0)).images, expected), "the settings stand in"
    other = load(tmp_path / "model", sibling.__name__, device="cpu")
    assert type(other) is controlled(sibling)
    moved = controlled(sibling).from_pipe(again)
    assert moved.transformer is again.transformer
    for pipe in (other, moved):
        assert pipe.settings == SMALL
        assert pipe(prompt="a fox", image=pictures(1)[0]).images[0].size == (64, 48)


def test_settings_that_the_class_does_not_have_are_left_out():
    pipe = tiny_sd3(cls=ControlledStableDiffusion3Pipeline)
    pipe.settings = ModelSettings(**{**SMALL.given(), "true_cfg_scale": 3.0})
    result = generate(pipe, Recipe(prompts=("a fox",)))
    assert result.pictures[0].size == (64, 48)
    assert result.recipe.true_cfg_scale is None
    assert result.recipe.max_sequence_length == 12


@pytest.mark.parametrize(("tiny", "cls"), [(tiny_flux, ControlledFluxPipeline), (tiny_sd3, ControlledStableDiffusion3Pipeline)])  # fmt: skip
def test_one_negative_prompt_serves_all(tiny, cls, latents_of):
    pipe = tiny(cls=cls)
    guidance = {"true_cfg_scale": 3.0} if cls is ControlledFluxPipeline else {"guidance_scale": 3.0}
    many = latents_of(pipe, **guidance, negative_prompt=["a rag"] * 3, negative_prompt_2=["an owl"] * 3)
    assert torch.equal(latents_of(pipe, **guidance, negative_prompt="a rag", negative_prompt_2="an owl"), many)
    assert not torch.equal(latents_of(pipe, **guidance, negative_prompt="a bell", negative_prompt_2="an owl"), many)


@pytest.mark.parametrize("tiny", [tiny_flux, tiny_sd3])
def test_controls_amend_prompts(tiny, latents_of):
    pipe = tiny(cls=controlled(type(tiny())))
    names = ["prompt", "prompt_2", *(["prompt_3"] if tiny is tiny_sd3 else [])]
    wanted = {name: ["a cup, fox, owl", "a key, fox, owl"] for name in names}
    given = {name: ["a cup", "a key"] for name in names}
    first, then = Said(), Said(words=", owl", strength=0.5, where={"blocks": "0"})
    expected = latents_of(
        pipe, n=2, **wanted, control=[AlignedStyle(), AlignedStyle(strength=0.5, where={"blocks": "0"})]
    )
    for amended in ({**given}, {"prompt": given["prompt"]}):
        assert torch.equal(latents_of(pipe, n=2, **amended, control=[first, then]), expected)
    off = latents_of(pipe, n=2, **given, control=Said(strength=0))
    assert torch.equal(off, latents_of(pipe, n=2, **given))
    one = pipe(
        prompt="a cup", num_inference_steps=1, height=64, width=64, output_type="latent", control=Said(strength=0)
    )
    assert len(one.images) == 1


def test_a_recipe_that_the_pipeline_cannot_run_says_so():
    words = Recipe(prompts=("a fox",), true_cfg_scale=2.0)
    with pytest.raises(ControlError, match=r"StableDiffusion3Pipeline has no true_cfg_scale; its .* is guidance_scale"):
        generate(tiny_sd3(cls=ControlledStableDiffusion3Pipeline), words)
    with pytest.raises(ControlError, match=r"starts from a picture.* pipeline='FluxPipeline'"):
        generate(controlled(FluxImg2ImgPipeline)(**tiny_flux().components), Recipe(prompts=("a fox",)))
    with pytest.raises(ControlError, match="height 60 is no multiple of 8 px, this model's token; 64 is the nearest"):
        generate(tiny_sd3(cls=ControlledStableDiffusion3Pipeline), Recipe(prompts=("a fox",), height=60))


def test_loading_refuses_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(ControlError, match=r"no pipeline 'FluxImg2ImagePipeline'; did you mean FluxImg2ImgPipeline"):
        load("tiny-flux", "FluxImg2ImagePipeline")
    with pytest.raises(ControlError, match="StableDiffusionPipeline has no FluxTransformer2DModel or SD3"):
        load("tiny-flux", "StableDiffusionPipeline")
    with pytest.raises(ControlError, match="cannot load the model 'tiny-flux'"):
        load("tiny-flux", "StableDiffusion3Pipeline", device="cpu")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ControlError, match=r"cannot read which pipeline 'nobody/nothing' is .* give its folder"):
        load("nobody/nothing", device="cpu", local_files_only=True)
