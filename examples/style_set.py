"""A set in one style: on a pipeline of ours, and on any FLUX or SD3 pipeline of diffusers.

python examples/style_set.py
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusion3Img2ImgPipeline

from attnctrl import AlignedStyle, Reference, Where, attached, load

prompts = ["a mushroom, comic", "a rocket, comic", "a penguin, comic"]


def seeds() -> list[torch.Generator]:
    """One generator a picture, so that a picture does not depend on its neighbours."""
    return [torch.Generator().manual_seed(i) for i in range(len(prompts))]


pipe = load("tiny-sd3")
images = pipe(prompts, control=AlignedStyle(strength=0.5), generator=seeds()).images
for i, image in enumerate(images):
    image.save(f"set-{i}.png")

# The same control on a pipeline of diffusers, following a picture, in the first 60% of the steps.
img2img = StableDiffusion3Img2ImgPipeline(**pipe.components)
control = AlignedStyle(
    strength=0.5, reference=Reference(picture="set-0.png", caption="a mushroom"), where=Where(steps="0%-60%")
)
with attached(img2img, control) as session:
    print(session)
    again = img2img(
        prompts, image=images, strength=0.8, guidance_scale=3.0, max_sequence_length=24, generator=seeds()
    ).images
for i, image in enumerate(again):
    image.save(f"again-{i}.png")
