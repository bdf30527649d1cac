"""Attention processors by architecture, and the controls that run in them: one file a method, found by the registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .addit import AddIt
    from .alignedgen import AlignedStyle
    from .apg import APG
    from .attaching import attached
    from .blockwise import SLG, TPG
    from .colorctrl import ColorCtrl
    from .consistedit import ConsistEdit
    from .ditctrl import DiTCtrl
    from .dragging import Drag
    from .freecus import FreeCus, described
    from .masactrl import MasaCtrl
    from .motionclr import Exchange, KeepStructure, MoveScene, Vary
    from .nag import NAG
    from .naive import NaiveSharing
    from .observing import Observe
    from .perturbation import PAG, SEG, SoftPAG
    from .prompt_to_prompt import PromptToPrompt
    from .sharing import Falling, SharingControl
    from .stableflow import StableFlow
    from .stylealigned import StyleAligned
    from .wordweights import WordWeights

_HOMES = {
    "APG": "apg",
    "AlignedStyle": "alignedgen",
    "ConsistEdit": "consistedit",
    "AddIt": "addit",
    "ColorCtrl": "colorctrl",
    "DiTCtrl": "ditctrl",
    "Drag": "dragging",
    "Exchange": "motionclr",
    "MasaCtrl": "masactrl",
    "StableFlow": "stableflow",
    "Falling": "sharing",
    "FreeCus": "freecus",
    "KeepStructure": "motionclr",
    "MoveScene": "motionclr",
    "NAG": "nag",
    "NaiveSharing": "naive",
    "Observe": "observing",
    "PAG": "perturbation",
    "PromptToPrompt": "prompt_to_prompt",
    "SEG": "perturbation",
    "SLG": "blockwise",
    "SharingControl": "sharing",
    "SoftPAG": "perturbation",
    "StyleAligned": "stylealigned",
    "TPG": "blockwise",
    "Vary": "motionclr",
    "WordWeights": "wordweights",
    "attached": "attaching",
    "described": "freecus",
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
    "ConsistEdit",
    "DiTCtrl",
    "Drag",
    "Exchange",
    "Falling",
    "FreeCus",
    "KeepStructure",
    "MasaCtrl",
    "MoveScene",
    "NaiveSharing",
    "Observe",
    "PromptToPrompt",
    "SharingControl",
    "SoftPAG",
    "StableFlow",
    "StyleAligned",
    "Vary",
    "WordWeights",
    "attached",
    "described",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
