"""What one transformer architecture must say of itself: the only place where token order and positions are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from .control import Reference, Rotary
from .layout import Arguments, Site, TokenLayout
from .rows import PictureRow


class Architecture(Protocol):
    """One transformer family. `arguments` are the keyword arguments of the transformer's forward."""

    name: ClassVar[str]
    rotary: ClassVar[bool]
    """Whether keys are rotated by their positions, or positions are added to the tokens before the blocks."""

    def sites(self, transformer: nn.Module) -> tuple[Site, ...]:
        """All attention sites in block order."""
        ...

    def processor(self, site: Site, run: Any, gates: Any) -> Any:
        """A processor for `site` that walks the phases of `run.call`; raises for a site it cannot serve."""
        ...

    def layout(self, transformer: Any, arguments: Arguments) -> TokenLayout:
        """Segments and grid of a call."""
        ...

    def conditional(self, pipe: Any, arguments: Arguments, call: int) -> tuple[bool, ...]:
        """For each half of the batch (one, or two under CFG in one batch) whether it carries the prompts."""
        ...

    def shifted(self, transformer: nn.Module, arguments: Arguments, rows: int, columns: int) -> Rotary:
        """Rotary tables of the image tokens moved by so many tokens."""
        ...

    def picture_row(self, pipe: Any, reference: Reference, arguments: Arguments, layout: TokenLayout) -> PictureRow:
        """Encode a reference picture and its caption to the shapes of this call."""
        ...

    def encoded_prompt(self, pipe: Any, prompt: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """Text and pooled text [1, ...] of a prompt, of this call's length."""
        ...

    def blocks(self, transformer: Any) -> list[tuple[nn.ModuleList, int]]:
        """Where each block is held, in running order."""
        ...

    def guidance_scale(self, pipe: Any) -> float | None:
        """Classifier-free guidance's g, where the pipeline keeps it and uses it."""
        ...

    def position_hooks(self, transformer: nn.Module, run: Any) -> Sequence[Any]:
        """Hooks that give the rows of `run.placed` their positions, for additive positions."""
        ...
