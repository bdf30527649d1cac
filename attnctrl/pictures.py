"""Pictures that users hand in: read, checked, fitted; and carried in recipes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageOps
from pydantic import BeforeValidator, PlainSerializer

from .arrays import is_array, picture_of
from .errors import ControlError
from .files import checked_file

DATA_URI = "data:image/png;base64,"
MIN_SIDE = 8
MAX_ASPECT = 8


def read_picture(source: Any) -> Image.Image:
    """An upright RGB picture from a path, a PIL image, an array (`picture_of`) or a PNG data URI; transparency is laid
    on white.

    Raises ControlError for a file that is missing or no picture, and for one under 8 px or narrower than 1:8.
    """
    if is_array(source):
        source = picture_of(source)
    if not isinstance(source, (str, Path, Image.Image)):
        raise ControlError(f"a {type(source).__name__} is no picture; give a path, a PIL image or an array")
    name = "the picture" if isinstance(source, Image.Image) or str(source).startswith(DATA_URI) else str(source)
    try:
        if isinstance(source, Image.Image):
            image = source
        elif str(source).startswith(DATA_URI):
            image = Image.open(io.BytesIO(base64.b64decode(str(source)[len(DATA_URI) :])))
        else:
            image = Image.open(checked_file(source, "the picture"))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and _most(image) > 255):  # 16 bits in 32
            image = image.point(lambda value: value / 256).convert("L")
        elif image.mode == "F" and _most(image) <= 1:
            image = image.point(lambda value: value * 255)
        rgba = image.convert("RGBA")
    except ControlError:
        raise
    except FileNotFoundError:
        raise ControlError(f"there is no picture at {name}") from None
    except IsADirectoryError:
        raise ControlError(f"{name} is a folder; name one picture file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise ControlError(f"cannot read {name} as a picture ({_first_line(fault)}); use PNG, JPEG or WebP") from None
    width, height = rgba.size
    if min(width, height) < MIN_SIDE:
        raise ControlError(f"{name} is {width} x {height} px; a reference needs at least {MIN_SIDE} px a side")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ControlError(f"{name} is {width} x {height} px, narrower than 1:{MAX_ASPECT}; crop it first")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def fit_picture(image: Image.Image, width: int, height: int) -> Image.Image:
    """The centre of `image`, cropped to the shape and resized to width x height px."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """The picture as a lossless PNG data URI, for JSON."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return DATA_URI + base64.b64encode(buffer.getvalue()).decode()


def _most(image: Image.Image) -> float:
    """The largest value of a picture of one channel."""
    low_high: Any = image.getextrema()
    return float(low_high[1])


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:120]


Picture = Annotated[Image.Image, BeforeValidator(read_picture), PlainSerializer(data_uri, return_type=str)]
