"""Attention processors by architecture, and the controls that run in them."""

from typing import Annotated

from pydantic import Field

from .alignedgen import AlignedStyle
from .attaching import attached
from .freecus import FreeCus, described
from .naive import NaiveSharing
from .sharing import Falling, SharingControl
from .stylealigned import StyleAligned

CONTROLS = (AlignedStyle, StyleAligned, NaiveSharing, FreeCus)
"""Every control that the command line or the app can name by its kind."""

AnyControl = Annotated[AlignedStyle | StyleAligned | NaiveSharing | FreeCus, Field(discriminator="kind")]
"""The same as a type, for recipes."""

__all__ = [
    "CONTROLS",
    "AlignedStyle",
    "AnyControl",
    "Falling",
    "FreeCus",
    "NaiveSharing",
    "SharingControl",
    "StyleAligned",
    "attached",
    "described",
]
