"""Pictures that users hand in as numbers: NumPy arrays and torch tensors, as the libraries around them make them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from .errors import ControlError

CHANNELS = (1, 3, 4)
SHAPES = "give [rows, columns], [rows, columns, 3] or [3, rows, columns], or a PIL image"


def is_array(source: Any) -> bool:
    """Whether something is a NumPy array or a torch tensor; imports neither."""
    return type(source).__module__.split(".")[0] in ("numpy", "torch") and hasattr(source, "ndim")


def picture_of(source: Any) -> Image.Image:
    """The picture [H, W], [H, W, C] or [C, H, W] with C of 1, 3 or 4, also in a batch of one; uint8 or uint16 from 0 to
    the type's most, floats from 0 to 1, or truth values. ControlError for anything else.
    """
    import numpy as np

    if hasattr(source, "detach"):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    values = np.asarray(source)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[0] in CHANNELS and values.shape[2] not in CHANNELS:
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[2] not in CHANNELS):
        raise ControlError(f"an array of shape {list(values.shape)} is no picture; {SHAPES}")
    if values.dtype.kind not in "bfu" or (values.dtype.kind == "u" and values.dtype.itemsize > 2):
        raise ControlError(f"an array of {values.dtype} is no picture; give uint8, or floats from 0 to 1")
    most = 1.0 if values.dtype.kind in "bf" else float(np.iinfo(values.dtype).max)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= most):
        way = "(x + 1) / 2" if -1 <= low <= high <= 1 else "x / 255" if 0 <= low <= high <= 255 else "finite numbers"
        raise ControlError(f"the picture's numbers run from {low:g} to {high:g}, and floats do from 0 to 1; give {way}")
    bytes_ = np.rint(values.astype(np.float64) * (255 / most)).astype(np.uint8)
    return Image.fromarray(bytes_.squeeze(2) if bytes_.shape[2:] == (1,) else bytes_)
