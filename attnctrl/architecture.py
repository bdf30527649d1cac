"""What one transformer architecture must say of itself: the only place where token order and positions are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .control import Rotary
from .layout import Arguments, Site, TokenLayout


class Architecture(Protocol):
    """One transformer family. `arguments` are the keyword arguments of the transformer's forward."""

    name: str

    def sites(self, transformer: nn.Module) -> tuple[Site, ...]:
        """All attention sites in block order."""
        ...

    def processor(self, site: Site, run: Any, gates: tuple[tuple[int, Tensor | None], ...]) -> Any:
        """A processor for `site` that walks the phases of `run.call`; raises for a site it cannot serve."""
        ...

    def layout(self, arguments: Arguments) -> TokenLayout:
        """Segments and grid of a call."""
        ...

    def groups(self, arguments: Arguments) -> int:
        """How many halves of the batch share nothing with each other (2 under CFG in one batch)."""
        ...

    def shifted(self, transformer: nn.Module, arguments: Arguments, rows: int, columns: int) -> Rotary:
        """Rotary tables of the image tokens moved by so many tokens."""
        ...

    def reference_row(self, pipe: Any, reference: Any, arguments: Arguments, layout: TokenLayout) -> ReferenceRow:
        """Encode a reference picture and its caption to the shapes of this call."""
        ...

    def widen(self, arguments: Arguments, rows: Sequence[ReferenceRow], sigma: Tensor, call: int) -> Arguments:
        """The arguments with the reference rows put first, each noised to sigma."""
        ...


class ReferenceRow:
    """A reference picture as the transformer takes it: clean latent, fixed noise and text, all [1, ...]."""

    def __init__(self, latent: Tensor, noise: Tensor, text: Tensor, pooled: Tensor) -> None:
        self.latent, self.noise, self.text, self.pooled = latent, noise, text, pooled

    def at(self, sigma: Tensor) -> Tensor:
        """The latent at noise level sigma: sigma * noise + (1 - sigma) * latent."""
        sigma = sigma.to(self.latent.device)
        return sigma * self.noise + (1 - sigma) * self.latent
