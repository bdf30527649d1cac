"""`ControlledPipeline`: what makes of a diffusers pipeline class one whose call takes a control."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from diffusers import DiffusionPipeline

from ..control import Control
from ..processors.attaching import Controls, attached
from ..registry import controls_of
from ..source import Source
from ..words import Prompts
from .checks import NEGATIVES, PROMPTS, check_call, check_memory
from .facts import facts_in
from .settings import FILE, ModelSettings

Pipeline = TypeVar("Pipeline", bound="ControlledPipeline")


class ControlledPipeline(DiffusionPipeline):
    """Stands before a diffusers pipeline class in a subclass: `control=` joins the call, all else stays.

    A model folder may hold `attnctrl.json`, whose size, text length and guidance stand in for arguments not given, as
    far as the class has them. Folders that it saves are loaded by stock diffusers.
    """

    stock: ClassVar[type[Any]]
    """The diffusers class."""
    settings = ModelSettings()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if ControlledPipeline in cls.__bases__:
            cls.stock = cls.__bases__[cls.__bases__.index(ControlledPipeline) + 1]
            cls.__call__ = _taking_control(cls.stock.__call__)

    @classmethod
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Pipeline:
        """As the stock class, with the folder's settings."""
        pipe: Pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipe.settings = ModelSettings.read(pretrained_model_name_or_path, **kwargs)
        return pipe

    @classmethod
    def from_pipe(cls: type[Pipeline], pipeline: DiffusionPipeline, **kwargs: Any) -> Pipeline:
        """As the stock class, with the other pipeline's settings."""
        pipe: Pipeline = super().from_pipe(pipeline, **kwargs)
        pipe.settings = getattr(pipeline, "settings", cls.settings)
        return pipe

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As the stock class, with the settings beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.settings.given():
            text = json.dumps(self.settings.given(), indent=2) + "\n"
            (Path(save_directory) / FILE).write_text(text)

    def to_json_string(self) -> str:
        """The model index, under the stock class's name."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = self.stock.__name__
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def filled(self, given: dict[str, Any], controls: Sequence[Control]) -> dict[str, Any]:
        """What the stock call gets: settings filled in, negative prompts repeated, prompts as controls amend them."""
        known = inspect.signature(self.stock.__call__).parameters
        filled = {name: value for name, value in self.settings.given().items() if name in known}
        if given.get("negative_prompt_embeds") is not None:
            filled.pop("negative_prompt", None)
        filled.update(given)
        prompt = filled.get("prompt")
        prompts = [prompt] if isinstance(prompt, str) else prompt or filled.get("prompt_embeds", ())
        for name in NEGATIVES:
            if isinstance(filled.get(name), str):
                filled[name] = [filled[name]] * len(prompts)
        return amended(filled, controls)


def stock_call(
    pipe: Any, call: dict[str, Any], controls: Sequence[Control]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """diffusers' own `__call__` of a pipeline, ours or theirs, and what it gets under controls."""
    if isinstance(pipe, ControlledPipeline):
        return pipe.stock.__call__, pipe.filled(call, controls)
    return type(pipe).__call__, amended(call, controls)


def amended(call: dict[str, Any], controls: Sequence[Control]) -> dict[str, Any]:
    """A call's arguments with the prompts as the controls want them."""
    return {
        name: _amended(value, controls) if name in PROMPTS and value is not None else value
        for name, value in call.items()
    }


def _taking_control(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline's `__call__` with `control` as its last argument."""
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def call(
        self: ControlledPipeline, *args: Any, control: Controls = None, source: Source | None = None, **kwargs: Any
    ) -> Any:
        controls = controls_of(control)
        given = {**signature.bind_partial(self, *args, **kwargs).arguments}
        del given["self"]
        check_call(given)
        filled = self.filled(given, controls)
        if self._execution_device.type == "cpu" and (facts := facts_in(self)):
            check_memory(facts, _pictures(filled), filled.get("height"), filled.get("width"))
        images, scale = filled.get("num_images_per_prompt") or 1, filled.get("true_cfg_scale")
        with attached(
            self, controls, images_per_prompt=images, guidance_scale=scale, prompts=_prompts(filled), source=source
        ):
            return stock(self, **filled)

    own = inspect.signature(call, follow_wrapped=False).parameters
    added = [own["control"], own["source"]]
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    call.__doc__ = (
        "`control`: a control, its class, a text (nag:prompt=blurry) or several, attached for this call only;\n"
        "`source`: the opened picture that they edit. Rows:\n"
        "the first prompt is the reference of a shared set, unless the control brings a picture. A single negative\n"
        "prompt serves all prompts. Raises\n"
        f"ControlError when the call cannot carry the control. All else as in diffusers:\n{stock.__doc__}"
    )
    return call


def _pictures(call: dict[str, Any]) -> int:
    prompt, images = call.get("prompt"), call.get("num_images_per_prompt") or 1
    return images if prompt is None or isinstance(prompt, str) else images * len(prompt)


def _prompts(call: dict[str, Any]) -> Prompts | None:
    """What the rows say, where they are given as words."""
    prompt = call.get("prompt")
    return None if prompt is None else Prompts((prompt,) if isinstance(prompt, str) else tuple(prompt), call)


def _amended(prompt: str | list[str], controls: Sequence[Control]) -> str | list[str]:
    if not isinstance(prompt, str):
        return [str(_amended(one, controls)) for one in prompt]
    for control in sorted(controls, key=lambda c: c.order):
        if not control.off:
            prompt = control.amend(prompt)
    return prompt
