"""`ControlledFluxPipeline`: diffusers' FluxPipeline whose call takes a control."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import FluxPipeline

from ..control import Control
from ..processors.attaching import attached
from .settings import FILE, ModelSettings


class ControlledFluxPipeline(FluxPipeline):
    """FluxPipeline with `control=`; everything else as in diffusers.

    A model folder may hold `attnctrl.json`, whose size, text length and guidance stand in for arguments not given. Folders
    that it saves are loaded by stock diffusers.
    """

    settings = ModelSettings()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ControlledFluxPipeline:
        """As FluxPipeline.from_pretrained, with the folder's settings."""
        pipe: ControlledFluxPipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipe.settings = ModelSettings.read(pretrained_model_name_or_path, **kwargs)
        return pipe

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As FluxPipeline.save_pretrained, with the settings beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.settings.given():
            text = json.dumps(self.settings.given(), indent=2) + "\n"
            (Path(save_directory) / FILE).write_text(text)

    def to_json_string(self) -> str:
        """The model index, under the stock class's name."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = FluxPipeline.__name__
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def __call__(self, *args: Any, control: Control | Sequence[Control] | None = None, **kwargs: Any) -> Any:
        """As FluxPipeline's call; `control` is one control or several, attached for this call only.

        Rows: the first prompt is the reference of a shared set, unless the control brings a picture. A single negative
        prompt serves all prompts. Raises ControlError when the call cannot carry the control.
        """
        given = inspect.signature(FluxPipeline.__call__).bind_partial(self, *args, **kwargs).arguments
        filled = {**self.settings.given(), **{name: value for name, value in given.items() if name != "self"}}
        if given.get("negative_prompt_embeds") is not None:
            filled.pop("negative_prompt", None)
        prompt, negative = filled.get("prompt"), filled.get("negative_prompt")
        if isinstance(negative, str):
            prompts = [prompt] if isinstance(prompt, str) else prompt or filled.get("prompt_embeds", ())
            filled["negative_prompt"] = [negative] * len(prompts)
        with attached(self, control, images_per_prompt=filled.get("num_images_per_prompt", 1)):
            return super().__call__(**filled)


_call = ControlledFluxPipeline.__call__
_stock = inspect.signature(FluxPipeline.__call__)
_control = inspect.signature(_call).parameters["control"]
_call.__signature__ = _stock.replace(parameters=[*_stock.parameters.values(), _control])  # type: ignore[attr-defined]
