"""Odd and wrong inputs of the Python entry points: what is said to each, and what is served since it is plain."""

from __future__ import annotations

import diffusers
import numpy as np
import torch
from PIL import Image
from tiny import tiny_flux

import attnctrl
from attnctrl import (
    AlignedStyle,
    Control,
    FreeCus,
    Recipe,
    Reference,
    Where,
    attached,
    controlled,
    generate,
    load,
    observe,
    read_recipe,
)

NOISE = Image.effect_noise((64, 64), 90)
GREY = np.asarray(NOISE)
RGB = np.asarray(NOISE.convert("RGB"))
SCALED = torch.tensor(RGB / 255.0, dtype=torch.float32).permute(2, 0, 1)
TWO = ["a fox", "a car"]
CALL = {"prompt": TWO, "num_inference_steps": 1, "height": 32, "width": 32, "output_type": "latent"}


def draw(pipe, control=None, **call):
    """Latents of a call."""
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(**{**CALL, "generator": generators, "control": control, **call}).images


def follow(picture):
    """A call whose reference is this."""
    return lambda pipe: draw(pipe, AlignedStyle(reference=Reference(picture=picture)))


def enter(pipe, *controls, **options):
    with attached(pipe, *controls, **options):
        pass


def twice(pipe):
    one = attached(pipe, "aligned")
    with one, one:
        pass


REFUSED = {
    "a control that is none": (lambda p: draw(p, "alinged"), "did you mean aligned"),
    "no text": (lambda p: draw(p, ""), "there is no control ''"),
    "a setting that is none": (lambda p: draw(p, "nag:colour=blue"), "nag has no setting 'colour'"),
    "a number": (lambda p: draw(p, 3), "3 is no control; give a control, its class, a text"),
    "false": (lambda p: draw(p, False), "False is no control"),
    "bytes": (lambda p: draw(p, b"aligned"), "b'aligned' is no control"),
    "a set": (lambda p: draw(p, {"aligned"}), "a set is no control"),
    "a generator": (lambda p: draw(p, (one for one in TWO)), "a generator is no control"),
    "a list in a list": (lambda p: draw(p, [["aligned"]]), "a list is no control"),
    "nothing in a list": (lambda p: draw(p, [None]), "a NoneType is no control"),
    "a where": (lambda p: draw(p, Where()), "a Where is no control"),
    "a recipe": (lambda p: draw(p, Recipe(prompts=("a",))), "a Recipe is no control"),
    "a module": (lambda p: draw(p, attnctrl), "a module is no control"),
    "the base": (lambda p: draw(p, Control), "Control is the base of controls"),
    "a class that needs a picture": (lambda p: draw(p, FreeCus), "freecus needs reference"),
    "a recipe's entry": (lambda p: draw(p, {"kind": "aligned"}), "a dict is no control"),
    "one twice": (lambda p: draw(p, ["aligned", "aligned"]), "aligned and aligned both set"),
    "a name for a pipeline": (lambda p: enter("tiny-sd3", "aligned"), "'tiny-sd3' is no pipeline"),
    "the wrong way round": (lambda p: enter("aligned", p), "'aligned' is no pipeline"),
    "no pipeline": (lambda p: enter(None, "aligned"), "NoneType is not supported"),
    "within itself": (twice, "attached already"),
    "within another": (lambda p: [enter(p, "nag:prompt=x") for _ in [0] if enter_within(p)], "attach them together"),
    "no pictures a prompt": (lambda p: enter(p, "aligned", images_per_prompt=0), "images_per_prompt is 0"),
    "a text for a number": (lambda p: enter(p, "aligned", images_per_prompt="2"), "images_per_prompt is '2'"),
    "truth for a number": (lambda p: enter(p, "aligned", images_per_prompt=True), "images_per_prompt is True"),
    "a text for guidance": (lambda p: enter(p, "aligned", guidance_scale="x"), "guidance_scale is 'x'"),
    "a number for prompts": (lambda p: enter(p, "aligned", prompts=3), "prompts is 3"),
    "numbers for prompts": (lambda p: enter(p, "aligned", prompts=[3]), "prompts holds 3"),
    "bytes for floats": (follow(GREY * 1.0), "floats do from 0 to 1; give x / 255"),
    "no number in it": (follow(np.full((64, 64, 3), np.nan)), "give finite numbers"),
    "from -1 to 1": (follow(SCALED * 2 - 1), "give (x + 1) / 2"),
    "five channels": (follow(np.zeros((64, 64, 5), np.uint8)), "an array of shape [64, 64, 5] is no picture"),
    "two pictures": (follow(np.zeros((2, 64, 64, 3), np.uint8)), "an array of shape [2, 64, 64, 3] is no picture"),
    "no pixels": (follow(np.zeros((0, 64, 3), np.uint8)), "an array of shape [0, 64, 3] is no picture"),
    "words for pixels": (follow(np.full((64, 64), "x")), "is no picture; give uint8, or floats"),
    "signed": (follow(RGB.astype(np.int32)), "an array of int32 is no picture"),
    "few pixels": (follow(np.zeros((4, 64, 3), np.uint8)), "64 x 4 px"),
    "no picture": (follow(None), "a NoneType is no picture"),
    "bytes for a picture": (follow(b"x"), "a bytes is no picture"),
    "no such file": (lambda p: draw(p, AlignedStyle(reference="no.png")), "there is no picture at no.png"),
    "a number for a prompt": (lambda p: draw(p, prompt=3), "prompt is 3; give a text"),
    "numbers in prompts": (lambda p: draw(p, prompt=[1, 2]), "prompt holds 1"),
    "no prompts": (lambda p: draw(p, prompt=[]), "prompt is empty"),
    "a dict of prompts": (lambda p: draw(p, prompt={"a": 1}), "prompt is a dict"),
    "bytes in prompts": (lambda p: draw(p, prompt=[b"a", b"b"]), "prompt holds b'a'"),
    "lists in prompts": (lambda p: draw(p, prompt=[["a"], ["b"]]), "prompt holds a list"),
    "half a letter": (lambda p: draw(p, prompt=["a \udcff", "b"]), "no UTF-8"),
    "a number against": (lambda p: draw(p, negative_prompt=3), "negative_prompt is 3"),
    "steps in words": (lambda p: draw(p, num_inference_steps="3"), "num_inference_steps is '3'"),
    "half a step": (lambda p: draw(p, num_inference_steps=2.5), "num_inference_steps is 2.5"),
    "no step": (lambda p: draw(p, num_inference_steps=0), "num_inference_steps is 0"),
    "steps without end": (lambda p: draw(p, num_inference_steps=10**7), "from 1 to 1000"),
    "a height in words": (lambda p: draw(p, height="64"), "height is '64'"),
    "a negative height": (lambda p: draw(p, height=-64), "height is -64"),
    "a wide wall": (lambda p: draw(p, width=10**6), "width is 1000000"),
    "no room": (lambda p: draw(p, height=16384, width=16384, num_images_per_prompt=1024), "GiB are free"),
    "guidance in words": (lambda p: draw(p, guidance_scale="3"), "guidance_scale is '3'"),
    "guidance without end": (lambda p: draw(p, guidance_scale=float("inf")), "guidance_scale is inf"),
    "guidance of 1e30": (lambda p: draw(p, guidance_scale=1e30), "from 0 to 100"),
    "a seed for a generator": (lambda p: draw(p, generator=3), "torch.Generator().manual_seed(3)"),
    "a long text": (lambda p: draw(p, max_sequence_length=10**6), "max_sequence_length is 1000000"),
    "no pictures": (lambda p: draw(p, num_images_per_prompt=0), "num_images_per_prompt is 0"),
    "blocks that are not there": (lambda p: draw(p, "aligned:blocks=99"), "this model has blocks 0-2"),
    "a dict for a recipe": (lambda p: generate(p, {"prompts": ["a"]}), "generate takes a Recipe, not a dict"),
    "a file for a recipe": (lambda p: generate(p, "no.json"), "read_recipe(FILE)"),
    "a recipe for a pipeline": (lambda p: generate(Recipe(prompts=("a",)), Recipe(prompts=("a",))), "attnctrl.load"),
    "diffusers' own pipeline": (lambda p: generate(tiny_flux(), Recipe(prompts=("a",))), "not a FluxPipeline"),
    "steps that never come": (
        lambda p: generate(p, Recipe(prompts=TWO, num_inference_steps=2, control=AlignedStyle(where={"steps": "9"}))),
        "this run has steps 0-1",
    ),
    "no file for a recipe": (lambda p: read_recipe(None), "a recipe is read from a file, not None"),
    "a number for a model": (lambda p: load(3), "there is no model '3'"),
    "a whole precision": (lambda p: load(dtype="int8"), "dtype is 'int8'"),
    "a number for a precision": (lambda p: load(dtype=3), "dtype is 3"),
    "an offload": (lambda p: load(offload="all"), "choose none, model or sequential"),
    "a number for a class": (lambda p: load(pipeline=3), "not 3"),
    "a name for a class": (lambda p: controlled("FluxPipeline"), "not 'FluxPipeline'"),
    "a pipeline for a class": (lambda p: controlled(p), "takes a pipeline class"),
    "a class of something else": (lambda p: controlled(diffusers.DDPMPipeline), "on which controls run"),
    "observe the wrong way round": (lambda p: observe("a fox", p), "takes a pipeline first"),
    "observe nothing": (lambda p: observe(p, []), "prompt is empty"),
    "observe a row": (lambda p: observe(p, "a fox", row="0"), "row is '0'"),
    "a word that is not there": (lambda p: observe(p, "a fox", "owl"), "there is no word 'owl'"),
}  # fmt: skip
"""What is called with a pipeline of three blocks, and a part of what is said."""


def enter_within(pipe):
    with attached(pipe, "aligned"):
        enter(pipe, "nag:prompt=x")
    return True


PLAIN = "aligned", "aligned:strength=1", AlignedStyle, [AlignedStyle], ("aligned",)
"""All the same as AlignedStyle()."""
PICTURES = {
    "NumPy, RGB": RGB,
    "NumPy, grey": GREY,
    "NumPy, one channel": GREY[:, :, None],
    "NumPy, channels first": RGB.transpose(2, 0, 1),
    "NumPy, floats": RGB / 255.0,
    "NumPy, a batch of one": RGB[None],
    "NumPy, 16 bits": GREY.astype(np.uint16) * 257,
    "NumPy, opaque": np.dstack([RGB, np.full_like(GREY, 255)]),
    "torch, floats": SCALED,
    "torch, a batch of one": SCALED[None],
    "torch, bytes": torch.tensor(RGB),
    "L": NOISE,
    "RGBA": NOISE.convert("RGBA"),
    "P": NOISE.convert("P"),
    "LA": NOISE.convert("LA"),
    "I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
    "I": Image.fromarray(GREY.astype(np.int32) * 257),
    "I of 8 bits": Image.fromarray(GREY.astype(np.int32)),
    "F": Image.fromarray(GREY.astype(np.float32)),
    "F to 1": Image.fromarray(GREY.astype(np.float32) / 255),
}
"""All the same picture."""
