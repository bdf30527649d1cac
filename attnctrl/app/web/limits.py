"""What one visitor may ask of the server."""

from __future__ import annotations

from pydantic import Field

from ...descriptions import Description
from ...embedded import MODELS
from ...errors import ControlError


class Limits(Description):
    """Enforced on the server, whatever the page sends; sides in pixels, times in seconds."""

    side: int = Field(1024, ge=16)
    embedded_side: int = Field(128, ge=16)
    steps: int = Field(60, ge=1)
    prompts: int = Field(8, ge=1)
    letters: int = Field(400, ge=16)
    upload_mb: int = Field(8, ge=1)
    items: int = Field(120, ge=1)
    """Sets times methods of an evaluation."""
    pictures: int = Field(3000, ge=1)
    """Pictures of a search or an atlas."""
    sessions: int = Field(64, ge=1)
    results: int = Field(8, ge=1)
    """Finished sets that a session keeps."""
    keep: int = Field(3600, ge=10)
    """Seconds after which a session's results and files go."""
    queue: int = Field(24, ge=1)

    def largest(self, model: str) -> int:
        """The longer side that a model may be asked for."""
        return self.embedded_side if model in MODELS else self.side

    def check(
        self, model: str, prompts: tuple[str, ...], width: int | None, height: int | None, steps: int | None
    ) -> None:
        """Raise ControlError for more than is allowed."""
        if not prompts:
            raise ControlError("there is no prompt; write at least one")
        if len(prompts) > self.prompts:
            raise ControlError(f"{len(prompts)} prompts; this server draws at most {self.prompts} at once")
        if max(map(len, prompts)) > self.letters:
            raise ControlError(
                f"a prompt of {max(map(len, prompts))} letters; this server reads at most {self.letters}"
            )
        most = self.largest(model)
        if max(width or 0, height or 0) > most:
            raise ControlError(f"{width} x {height} px; with {model} this server draws at most {most} px a side")
        if steps is not None and not 1 <= steps <= self.steps:
            raise ControlError(f"{steps} steps; this server takes 1 to {self.steps}")
