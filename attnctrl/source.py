"""A picture opened for editing: its latents at every step, where its words are; and the batch row that replays it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ControlError
from .guests import Entering, Guest, GuestRow
from .layout import Arguments, Layout
from .region import Region
from .words import Part, columns_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .host import Host


@dataclass(frozen=True, eq=False)
class Source:
    """A picture's run: `latents` [steps + 1, ...] as the transformer takes them, from noise to the finished one.

    `grid`: its image tokens (rows, columns). `attention` [columns, S_img]: how much each image token attends to the
    text's columns `columns`, mean over heads, blocks and steps. `parts`: how its prompt became tokens. On the CPU.
    """

    prompt: str
    latents: Tensor
    grid: tuple[int, ...]
    attention: Tensor
    columns: tuple[int, ...]
    texts: tuple[Part, ...]

    @property
    def steps(self) -> int:
        """Solver steps of its run."""
        return len(self.latents) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.latents.nbytes + self.attention.nbytes)

    def parts(self, prompt: str, **call: Any) -> tuple[Part, ...]:
        """How its own prompt became tokens (`words.Reads`)."""
        return self.texts

    def map(self, words: str) -> Tensor:
        """Attention to a word or phrase of its prompt [S_img], all its columns summed; ControlError for other words."""
        found = columns_of(self, self.prompt, (words,))[0].columns
        return self.attention[[self.columns.index(column) for column in found]].sum(0)

    def find(self, region: Region, rows: int, columns: int) -> Image.Image:
        """Where a region's words are, 255 above its threshold: a grey picture of columns x rows px (`region.Find`)."""
        import numpy as np
        from PIL import Image

        values = self.map(region.words)
        low, high = values.min(), values.max()
        if low == high:
            raise ControlError(f"the source attends to {region.words!r} everywhere alike; give a box or a mask")
        inside = (values - low) > region.threshold * (high - low)
        light = (inside.reshape(self.grid[-2:]).numpy() * 255).astype(np.uint8)
        return Image.fromarray(light).resize((columns, rows), Image.Resampling.NEAREST)


@dataclass(frozen=True, eq=False)
class SourceGuest(Guest):
    """The source as a row: its latents of each step, its prompt."""

    source: Source

    @property
    def key(self) -> Hashable:
        """The very source."""
        return "source", id(self.source)

    def enter(self, host: Host, arguments: Arguments, layout: Layout) -> SourceRow:
        """Its prompt encoded at this call's text length; ControlError for a run of another size."""
        source, hidden = self.source, arguments[host.edge.batched.latents]
        if layout.grid != source.grid:
            sizes = " and ".join(" x ".join(map(str, grid)) for grid in (source.grid, layout.grid))
            raise ControlError(f"the source and this run have {sizes} image tokens; edit at the source's own size")
        text, pooled = host.encoded_prompt(source.prompt, arguments)
        latents, text = (x.to(hidden[0].device, hidden[0].dtype) for x in (source.latents, text))
        return SourceRow(latents, text, None if pooled is None else pooled.to(text))


@dataclass(frozen=True)
class SourceRow(GuestRow):
    """Latents [steps + 1, ...], text and pooled text [1, ...]."""

    latents: Tensor
    text: Tensor
    pooled: Tensor | None

    def put(self, role: str, rows: Sequence[Tensor], now: Entering) -> Tensor:
        """Condition tokens and channels are the first row's, the negative text too."""
        if role == "latents":
            steps = len(self.latents) - 1
            if now.step.count != steps:
                raise ControlError(f"the source has {steps} steps and this run {now.step.count}; take as many")
            latent, row = self.latents[now.step.index], rows[0].clone()
            row[0][tuple(slice(size) for size in latent.shape)] = latent
            return row
        said = {"text": self.text, "pooled": self.pooled}.get(role) if now.conditional else None
        return rows[0] if said is None else said
