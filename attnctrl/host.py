"""What one pipeline family must say of itself, and hosts without a pipeline: text, pictures, guidance, velocity."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from .edge import Edge
from .errors import ControlError
from .layout import Arguments, Layout, Site

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from .words import Part

TRANSFORMERS = ("transformer", "transformer_2")
"""Where diffusers' pipelines hold their transformers."""


class Host(ABC):
    """One pipeline family on one edge; works with the pipeline's parts, never with its `__call__`.

    `pipe` may be any object with the parts that are asked for: a pipeline, a modular pipeline, a namespace.
    """

    edge: ClassVar[Edge]

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """The transformers that controls act on, by the pipeline's names."""
        found = {name: getattr(self.pipe, name, None) for name in TRANSFORMERS}
        return {name: one for name, one in found.items() if one is not None and self.edge.serves(one)}

    @property
    def sites(self) -> tuple[Site, ...]:
        """All attention sites of all transformers, with the transformer's name where there are several."""
        several = len(self.transformers) > 1
        return tuple(
            replace(site, model=name if several else "")
            for name, one in self.transformers.items()
            for site in self.edge.sites(one)
        )

    @property
    def device(self) -> torch.device:
        """Where the transformer runs, which under offloading is not where its weights lie."""
        own: torch.device = next(iter(self.transformers.values())).parameters().__next__().device
        return own if own.type not in ("cpu", "meta") else getattr(self.pipe, "_execution_device", own)

    def conditional(self, arguments: Arguments, call: int) -> tuple[bool, ...]:
        """For each half of the batch whether it carries the prompts; one entry where passes run in calls of their
        own."""
        return (call == 0,)

    def continues(self, arguments: Arguments) -> bool:
        """Whether a call belongs to the evaluation before, though its latents are other ones."""
        return False

    @property
    def guidance_scale(self) -> float | None:
        """Classifier-free guidance's g, where the pipeline keeps it and uses it."""
        return None

    @property
    def unit(self) -> int:
        """Pixels a side of one image token."""
        return 0

    def parts(self, prompt: str, **call: Any) -> tuple[Part, ...]:
        """What the tokenizers make of a prompt, as parts of the text sequence; `call` the pipeline's arguments."""
        raise self.lacks("tokenizers")

    def encoded_prompt(self, prompt: str, arguments: Arguments) -> tuple[Tensor, Tensor | None]:
        """Text and pooled text [1, ...] of a prompt, of this call's length."""
        raise self.lacks("text encoders")

    def encoded_picture(self, picture: Image.Image, arguments: Arguments, layout: Layout) -> Tensor:
        """A picture's clean latent [1, ...] as the transformer takes it, at the size of this call."""
        raise self.lacks("an autoencoder")

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """The pipeline's latents of pictures of so many pixels, as the autoencoder takes them [B, C, h, w]."""
        return latents

    def decoded(self, latents: Tensor, height: int, width: int) -> list[Image.Image]:
        """Pictures of the pipeline's latents, as the pipeline decodes them at its end."""
        import torch

        vae = self.pipe.vae
        with torch.no_grad():
            latents = self.unpacked(latents, height, width)
            latents = (latents.to(vae.dtype) / vae.config.scaling_factor) + (vae.config.shift_factor or 0.0)
            decoded = vae.decode(latents, return_dict=False)[0]
        images: list[Image.Image] = self.pipe.image_processor.postprocess(decoded, output_type="pil")
        return images

    def condition(self, prompt: str | Sequence[str], height: int, width: int, **call: Any) -> Arguments:
        """What `velocity` needs beside latents and noise level: encoded prompts, positions, guidance."""
        raise self.lacks("text encoders")

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Arguments) -> Tensor:
        """The predicted velocity noise - clean of latents at noise level sigma in [0, 1], by one transformer call."""
        raise self.lacks("a velocity of its own")

    def part(self, name: str) -> Any:
        """A method or component of the pipeline; ControlError where it has none."""
        found = getattr(self.pipe, name, None)
        if found is None:
            raise self.lacks(f"`{name}`")
        return found

    def lacks(self, what: str) -> ControlError:
        """The fault of a host that has no such part."""
        return ControlError(
            f"{type(self.pipe).__name__} has no {what} that this control can ask; use a pipeline that does"
        )


class BareHost(Host):
    """A transformer alone, or a pipeline of an unknown family around a known transformer; the caller sets the clock."""

    def __init__(self, edge: Edge, transformers: dict[str, nn.Module], pipe: Any) -> None:
        super().__init__(pipe)
        self._edge, self._transformers = edge, transformers

    @property
    def edge(self) -> Edge:  # type: ignore[override]
        """The edge that serves the transformer."""
        return self._edge

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """The transformer alone."""
        return self._transformers


_hosts: list[type[Host]] = []


def register_model(host: type[Host]) -> type[Host]:
    """Make a model known: its host, whose `edge` says what the transformer is. Also a decorator. The last one is asked
    first."""
    if host not in _hosts:
        _hosts.append(host)
    return host


def known_hosts() -> tuple[type[Host], ...]:
    """All registered hosts."""
    return tuple(_hosts)


def host_of(pipe: Any) -> Host:
    """The host of a pipeline, a modular pipeline, or a transformer alone; ControlError for one that is not known."""
    for name in ("", *TRANSFORMERS):
        transformer = getattr(pipe, name, None) if name else pipe
        for host in reversed(known_hosts()):
            if transformer is not None and host.edge.serves(transformer):
                if not name:
                    return BareHost(host.edge, {"transformer": pipe}, pipe)
                return host(pipe)
    known = ", ".join(dict.fromkeys(host.edge.transformer.__name__ for host in known_hosts()))
    transformer = getattr(pipe, "transformer", pipe)
    what = type(transformer).__name__
    named = what if transformer is pipe else f"{type(pipe).__name__} with a {what}"
    raise ControlError(f"{named} is not supported; controls run on {known}")
