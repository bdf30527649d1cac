"""Control of the attention of diffusion transformers, without training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .control import Control
    from .errors import ConflictError, ControlError, NoEffectWarning, OverGuidanceWarning
    from .pipelines.controlled import controlled
    from .pipelines.edit_session import EditSession
    from .pipelines.editing import Edited, Opened, edit, open_source
    from .pipelines.flux import ControlledFluxPipeline
    from .pipelines.generate import generate
    from .pipelines.loading import load
    from .pipelines.observe import Observation, observe
    from .pipelines.recipe import Recipe, read_recipe
    from .pipelines.sd3 import ControlledStableDiffusion3Pipeline
    from .processors import (
        APG,
        NAG,
        PAG,
        SEG,
        SLG,
        TPG,
        AddIt,
        AlignedStyle,
        ColorCtrl,
        ConsistEdit,
        DiTCtrl,
        Drag,
        Exchange,
        Falling,
        FreeCus,
        KeepStructure,
        MasaCtrl,
        MoveScene,
        NaiveSharing,
        Observe,
        PromptToPrompt,
        SoftPAG,
        StableFlow,
        StyleAligned,
        Vary,
        WordWeights,
        attached,
    )
    from .reference import Reference
    from .region import Region
    from .registry import register
    from .where import Where

_HOMES = {
    "APG": "processors",
    "AlignedStyle": "processors",
    "ConflictError": "errors",
    "ConsistEdit": "processors",
    "ColorCtrl": "processors",
    "AddIt": "processors",
    "StableFlow": "processors",
    "MasaCtrl": "processors",
    "DiTCtrl": "processors",
    "Control": "control",
    "ControlError": "errors",
    "ControlledFluxPipeline": "pipelines.flux",
    "ControlledStableDiffusion3Pipeline": "pipelines.sd3",
    "Drag": "processors",
    "EditSession": "pipelines.edit_session",
    "Edited": "pipelines.editing",
    "Exchange": "processors",
    "Falling": "processors",
    "FreeCus": "processors",
    "KeepStructure": "processors",
    "MoveScene": "processors",
    "NAG": "processors",
    "NaiveSharing": "processors",
    "NoEffectWarning": "errors",
    "Observation": "pipelines.observe",
    "Observe": "processors",
    "Opened": "pipelines.editing",
    "OverGuidanceWarning": "errors",
    "PAG": "processors",
    "PromptToPrompt": "processors",
    "Recipe": "pipelines.recipe",
    "Reference": "reference",
    "Region": "region",
    "SEG": "processors",
    "SLG": "processors",
    "SoftPAG": "processors",
    "StyleAligned": "processors",
    "TPG": "processors",
    "Vary": "processors",
    "Where": "where",
    "WordWeights": "processors",
    "attached": "processors",
    "controlled": "pipelines.controlled",
    "edit": "pipelines.editing",
    "generate": "pipelines.generate",
    "load": "pipelines.loading",
    "observe": "pipelines.observe",
    "open_source": "pipelines.editing",
    "read_recipe": "pipelines.recipe",
    "register": "registry",
}

__all__ = [
    "APG",
    "NAG",
    "PAG",
    "SEG",
    "SLG",
    "TPG",
    "AddIt",
    "AlignedStyle",
    "ColorCtrl",
    "ConflictError",
    "ConsistEdit",
    "Control",
    "ControlError",
    "ControlledFluxPipeline",
    "ControlledStableDiffusion3Pipeline",
    "DiTCtrl",
    "Drag",
    "EditSession",
    "Edited",
    "Exchange",
    "Falling",
    "FreeCus",
    "KeepStructure",
    "MasaCtrl",
    "MoveScene",
    "NaiveSharing",
    "NoEffectWarning",
    "Observation",
    "Observe",
    "Opened",
    "OverGuidanceWarning",
    "PromptToPrompt",
    "Recipe",
    "Reference",
    "Region",
    "SoftPAG",
    "StableFlow",
    "StyleAligned",
    "Vary",
    "Where",
    "WordWeights",
    "attached",
    "controlled",
    "edit",
    "generate",
    "load",
    "observe",
    "open_source",
    "read_recipe",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attnctrl' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
