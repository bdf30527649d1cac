"""One picture drawn, its run kept for editing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..control import Control
from ..processors.attaching import attached, host_of
from ..processors.capture import Capture, Captured
from ..source import Source
from ..words import Prompts, words_of
from .checks import check_call
from .mixin import stock_call

Stepped = Callable[[int, int], None]
Led = Callable[[Any, int, Tensor], Tensor]
"""The latents that stand for a run's own after a step: led(pipe, step, latents)."""


def drawn(
    pipe: Any,
    prompt: str,
    controls: Sequence[Control],
    call: dict[str, Any],
    *,
    source: Source | None = None,
    own: Tensor | None = None,
    led: Led | None = None,
    stepped: Stepped | None = None,
) -> tuple[Image.Image, Source]:
    """A picture of one prompt under controls that may edit `source`, and its run.

    `own` [rows, columns]: how much of each token's latents is the run's own after a step, the rest is the source's;
    None: all of it. stepped(done, of) is called after every step.
    """
    host, (run, filled) = host_of(pipe), stock_call(pipe, {"prompt": prompt, **call}, controls)
    check_call(filled)
    said, scale = filled["prompt"], filled.get("true_cfg_scale")
    prompts = Prompts((said,), filled)
    columns = tuple(sorted({column for word in words_of(host, said, **prompts.of(0)) for column in word.columns}))
    watch = Capture(columns=columns)

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if stepped:
            stepped(step + 1, pipe.num_timesteps)
        if led is not None:
            tensors["latents"] = led(pipe, step, tensors["latents"])
        if source is not None and own is not None:
            tensors["latents"] = _blended(source.latents[step + 1], tensors["latents"], own)
        return tensors

    with attached(pipe, [*controls, watch], guidance_scale=scale, prompts=prompts, source=source) as session:
        assert session
        latents = run(pipe, **filled, output_type="latent", callback_on_step_end=after).images
        found: Captured = session.recorded(watch)
    height, width = (side * host.unit for side in found.grid[-2:])
    path = torch.stack([*found.latents, latents[0].to(found.latents[0])])
    attention = torch.zeros(0, height * width) if found.total is None else found.total / found.count
    picture = host.decoded(latents, height, width)[0]
    return picture, Source(said, path, found.grid, attention, columns, host.parts(said, **prompts.of(0)))


def _blended(theirs: Tensor, mine: Tensor, own: Tensor) -> Tensor:
    """Latents [1, ...], by tokens or as a grid, with the source's [...] where `own` [rows, columns] is 0."""
    theirs = theirs[None].to(mine)
    share = own.to(mine)
    share = share.reshape(1, -1, 1) if mine.ndim == 3 else interpolate(share[None, None], mine.shape[-2:])
    return torch.lerp(theirs, mine, share)
