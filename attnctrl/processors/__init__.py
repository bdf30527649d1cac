"""Attention processors by architecture, and the controls that run in them."""

from typing import Annotated

from pydantic import Field

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

SHARING = (AlignedStyle, StyleAligned, NaiveSharing, FreeCus)
GUIDANCE = (SoftPAG, PAG, SEG, SLG, TPG, NAG, APG)
CONTROLS = (*SHARING, *GUIDANCE)
"""Every control that the command line or the app can name by its kind."""

AnyControl = Annotated[
    AlignedStyle | StyleAligned | NaiveSharing | FreeCus | SoftPAG | PAG | SEG | SLG | TPG | NAG | APG,
    Field(discriminator="kind"),
]
"""The same as a type, for recipes."""

__all__ = [
    "APG",
    "CONTROLS",
    "GUIDANCE",
    "NAG",
    "PAG",
    "SEG",
    "SHARING",
    "SLG",
    "TPG",
    "AlignedStyle",
    "AnyControl",
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
