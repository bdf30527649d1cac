"""`open_source` and `edit`: a picture opened once, and edited as often as wished."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..control import Control
from ..errors import ControlError, NoEffectWarning
from ..processors.attaching import Controls, host_of
from ..processors.editing import EditControl
from ..region import Region
from ..registry import controls_of
from ..source import Source
from .captured import Stepped, drawn

UNCHANGED = 0.02
"""A mean difference of pixels (of 1) below which nothing is seen to have changed."""
LITTLE = 0.25
"""The share of what the new prompt alone changes in the region, below which an edit did not take (docs/editing.md)."""
NOT_OF_ONE = (
    "num_images_per_prompt", "prompt_2", "prompt_3", "prompt_embeds", "latents", "generator", "output_type",
    "return_dict", "callback_on_step_end",
)  # fmt: skip
"""Arguments of a pipeline's call that opening and editing set themselves."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A picture that can be edited: `image`, its run `source`, and the arguments `call` that made it."""

    image: Image.Image
    source: Source
    call: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.source.nbytes + self.image.width * self.image.height * 3


@dataclass(frozen=True, eq=False)
class Edited(Opened):
    """An edit, opened in its turn. `before`: what was edited; `plain`: what the prompt alone makes of the same noise.

    `region` is where it might change (None: everywhere). `changed`: the mean difference of pixels to `before` in the
    region, of 1; `outside`: elsewhere; `plainly`: of `plain` in the region; NaN for what there is not.
    """

    before: Image.Image
    region: Image.Image | None
    plain: Image.Image | None
    changed: float
    outside: float
    plainly: float

    @property
    def took(self) -> bool:
        """Whether the edit is to be seen: at least a quarter of what the prompt alone changes."""
        return took(self.changed, self.plainly)


def took(changed: float, plainly: float) -> bool:
    """Whether a mean change of pixels is to be seen, beside the one that the prompt alone makes (NaN: not known)."""
    return changed >= (UNCHANGED if np.isnan(plainly) else max(UNCHANGED, LITTLE * plainly))


def open_source(
    pipe: Any,
    prompt: str,
    *,
    seed: int = 0,
    control: Controls = None,
    stepped: Stepped | None = None,
    **call: Any,
) -> Opened:
    """Draw a picture and keep what editing it needs: its latents at every step and where its words are.

    pipe: a FLUX or SD3 pipeline, of attnctrl or of diffusers. One run of `prompt` with the noise of `seed`, bit-equal
    to the pipeline's own. control: controls of this run. call: the pipeline's other arguments, which edits use too.
    stepped(done, of) is called after every step. Raises ControlError for arguments that a single picture does not have.
    """
    _refuse(call)
    run = {**call, "generator": torch.Generator().manual_seed(seed)}
    return Opened(*drawn(pipe, prompt, controls_of(control), run, stepped=stepped), call)


def edit(
    pipe: Any,
    opened: Opened,
    prompt: str,
    control: Controls = None,
    *,
    region: Region | str | None = None,
    keep: bool = False,
    compare: bool | Image.Image = True,
    stepped: Stepped | None = None,
    **call: Any,
) -> Edited:
    """Edit an opened picture: the same noise under another prompt and controls; the result is opened in its turn.

    control: editing methods, and any others beside them. region: where the picture may change, for controls that were
    given none; a text is words of the picture's prompt. keep: outside the region the latents are the source's after
    every step (blended latent diffusion, arXiv 2206.02779); needs a region. compare: also draw what the prompt alone
    makes, one more run, unless it is given. call: arguments that differ from the opened picture's. Warns where the edit
    is not to be seen.
    """
    _refuse(call)
    source = opened.source
    region = Region(words=region) if isinstance(region, str) else region
    controls = [_within(one, region) for one in controls_of(control)]
    weights = _touched(controls, region, source)
    if keep and weights is None:
        raise ControlError("keep=True keeps what lies outside of a region, and none is given; give region=...")
    own = torch.tensor(weights).reshape(source.grid[-2:]) if weights is not None and keep else None
    said = {**opened.call, **call}
    run = {**said, "latents": source.latents[:1].to(host_of(pipe).device)}
    plain = drawn(pipe, prompt, [], run, stepped=stepped)[0] if compare is True else compare or None
    image, result = drawn(pipe, prompt, controls, run, source=source, own=own, stepped=stepped)
    mask = None if weights is None else _mask(weights, source, image.size)
    changed, outside = differences(image, opened.image, mask)
    plainly = float("nan") if plain is None else differences(plain, opened.image, mask)[0]
    done = Edited(image, result, said, opened.image, mask, plain, changed, outside, plainly)
    if not done.took and prompt != source.prompt:
        warnings.warn(_untaken(done, controls), NoEffectWarning, stacklevel=2)
    return done


def _refuse(call: dict[str, Any]) -> None:
    for name in NOT_OF_ONE:
        if name in call:
            raise ControlError(f"{name} cannot be given here: a picture is opened and edited alone, by prompt and seed")


def _touched(controls: Sequence[Control], region: Region | None, source: Source) -> list[float] | None:
    """How much of each token may change: the union of all regions, and of where objects go; None for everywhere."""
    found = [one.touched(source) for one in controls if isinstance(one, EditControl)]
    if region is not None:
        found.append(region.weights(source.grid, source.find))
    known = [one for one in found if one is not None]
    return [max(values) for values in zip(*known, strict=True)] if known else None


def _mask(weights: Sequence[float], source: Source, size: tuple[int, int]) -> Image.Image:
    rows, columns = source.grid[-2:]
    small = Image.frombytes("L", (columns, rows), bytes(round(255 * share) for share in weights))
    return small.resize(size, Image.Resampling.NEAREST)


def _within(control: Control, region: Region | None) -> Control:
    """An editing control with the region that it was not given."""
    if not isinstance(control, EditControl) or control.region is not None or region is None:
        return control
    return control.model_copy(update={"region": region})


def mask_of(region: Region, source: Source, size: tuple[int, int]) -> Image.Image:
    """A region of a source as a grey picture of `size`, width and height in px; ControlError for words not there."""
    return _mask(region.weights(source.grid, source.find), source, size)


def differences(one: Image.Image, other: Image.Image, mask: Image.Image | None) -> tuple[float, float]:
    """Mean difference of pixels of 1 in the mask and elsewhere; without a mask everywhere, and NaN."""
    a, b = (np.asarray(x.convert("RGB"), np.float64) / 255 for x in (one, other))
    apart = np.abs(a - b).mean(-1)
    if mask is None:
        return float(apart.mean()), float("nan")
    inside = np.asarray(mask) > 127
    within, without = (float(apart[x].mean()) if x.any() else float("nan") for x in (inside, ~inside))
    return within, without


def _untaken(done: Edited, controls: Sequence[Control]) -> str:
    """What is said of an edit that cannot be seen, with the setting to try."""
    beside = "" if done.plain is None else f", the prompt alone {done.plainly:.3f}"
    ways = [way for one in controls if isinstance(one, EditControl) and (way := one.weaker)]
    way = f"try {' or '.join(ways)}" if ways else "try another prompt or a larger region"
    return f"the edit is hardly to be seen: it changes the region by {done.changed:.3f} of 1{beside}; {way}"
