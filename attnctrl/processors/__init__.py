"""Attention processors by architecture, and the controls that run in them."""

from .alignedgen import AlignedStyle
from .attaching import attached
from .naive import NaiveSharing
from .sharing import Falling, SharingControl
from .stylealigned import StyleAligned

CONTROLS = (AlignedStyle, StyleAligned, NaiveSharing)
"""Every control that a recipe, the command line or the app can name by its kind."""

__all__ = ["CONTROLS", "AlignedStyle", "Falling", "NaiveSharing", "SharingControl", "StyleAligned", "attached"]
