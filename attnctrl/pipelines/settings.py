"""`attnctrl.json`: what a model folder says of its own size, text length and guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import Field, ValidationError

from ..descriptions import Description, explain
from ..errors import ControlError

FILE = "attnctrl.json"
HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only")


class ModelSettings(Description):
    """Arguments that a model wants where the user gives none; None leaves diffusers' own default.

    Sizes in pixels, `max_sequence_length` in T5 tokens.
    """

    height: int | None = Field(None, gt=0)
    width: int | None = Field(None, gt=0)
    max_sequence_length: int | None = Field(None, gt=0)
    num_inference_steps: int | None = Field(None, gt=0)
    true_cfg_scale: float | None = Field(None, ge=0.0)
    guidance_scale: float | None = Field(None, ge=0.0)
    negative_prompt: str | None = None

    @classmethod
    def read(cls, model: str | Path, **options: Any) -> ModelSettings:
        """The settings of a folder or hub id; empty where it has none. Raises ControlError for an unreadable file."""
        path = Path(model) / FILE
        if not Path(model).is_dir():
            try:
                path = Path(hf_hub_download(str(model), FILE, **{k: options[k] for k in HUB_OPTIONS if k in options}))
            except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
                return cls()
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as fault:
            raise ControlError(f"{path}: {explain(fault)}; correct or delete this file") from None

    def given(self) -> dict[str, Any]:
        """The settings that are set."""
        return self.model_dump(exclude_none=True)
