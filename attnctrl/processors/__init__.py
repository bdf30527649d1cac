"""Attention processors by architecture, and the controls that run in them: one file a method, found by the registry."""

from .alignedgen import AlignedStyle
from .apg import APG
from .attaching import attached
from .blockwise import SLG, TPG
from .freecus import FreeCus, described
from .nag import NAG
from .naive import NaiveSharing
from .observing import Observe
from .perturbation import PAG, SEG, SoftPAG
from .sharing import Falling, SharingControl
from .stylealigned import StyleAligned

__all__ = [
    "APG",
    "NAG",
    "PAG",
    "SEG",
    "SLG",
    "TPG",
    "AlignedStyle",
    "Falling",
    "FreeCus",
    "NaiveSharing",
    "Observe",
    "SharingControl",
    "SoftPAG",
    "StyleAligned",
    "attached",
    "described",
]
