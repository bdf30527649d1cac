"""Regions of a picture as data: words, boxes, masks, what they make together; read as tokens or weights on a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter
from pydantic import Field, model_validator

from .descriptions import Description
from .errors import ControlError
from .pictures import Picture, fit_picture

FINE = 8
"""A box is drawn so many times finer than the grid, so that a token knows how much of it lies inside."""
THRESHOLD = 0.2
"""Where words begin, between the least and the greatest attention to them (measured in docs/edit-evaluations.md)."""


class Region(Description):
    """A part of a picture: where `words` are, a `box`, a `mask`, or a union, intersection or difference of `parts`.

    words: of the prompt of the picture that is edited, found there by its attention; threshold: how far between the
    least and the greatest attention the region begins. box: (left, top, right, bottom) as shares of the frame. mask:
    white inside, a path or a picture of any size, fitted to the frame. edge: softness in tokens, the deviation of a
    Gaussian; 0 leaves a hard edge. `a | b`, `a & b` and `a - b` make regions of regions. Raises ValidationError for a
    box outside of the frame, and for anything but one of the four.
    """

    words: str = Field("", description="of the source's prompt, found by its attention")
    threshold: float = Field(THRESHOLD, ge=0.0, lt=1.0, description="of the words' attention, from least to greatest")
    box: tuple[float, float, float, float] | None = None
    mask: Picture | None = None
    joined: Literal["union", "intersection", "difference"] = "union"
    parts: tuple[Region, ...] = ()
    edge: float = Field(0.0, ge=0.0, le=64.0)

    @model_validator(mode="after")
    def _one_of_four(self) -> Region:
        if sum((bool(self.words.strip()), self.box is not None, self.mask is not None, bool(self.parts))) != 1:
            raise ValueError("a region is words, a box, a mask, or made of parts: give one of the four")
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(f"box {self.box}: write left, top, right, bottom as shares of the frame, 0 to 1")
        return self

    def __or__(self, other: Region) -> Region:
        return Region(joined="union", parts=(self, other))

    def __and__(self, other: Region) -> Region:
        return Region(joined="intersection", parts=(self, other))

    def __sub__(self, other: Region) -> Region:
        return Region(joined="difference", parts=(self, other))

    def image(self, grid: tuple[int, ...], find: Find | None = None) -> Image.Image:
        """How much of each token lies inside: a grey picture of columns x rows px, for the last two axes of a grid.

        `find` says where words are; ControlError for words where nobody does.
        """
        rows, columns = grid[-2:]
        if self.words:
            if find is None:
                raise ControlError(
                    f"the words {self.words!r} are looked for in a picture that is edited, and there is none; "
                    "give a box or a mask"
                )
            found = find(self, rows, columns)
        elif self.box is not None:
            fine = Image.new("L", (columns * FINE, rows * FINE))
            left, top, right, bottom = (
                round(share * side) for share, side in zip(self.box, fine.size * 2, strict=True)
            )
            ImageDraw.Draw(fine).rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=255)
            found = fine.resize((columns, rows), Image.Resampling.BOX)
        elif self.mask is not None:
            found = fit_picture(self.mask, columns, rows).convert("L")
        else:
            found, *others = (part.image(grid, find) for part in self.parts)
            for other in others:
                found = _JOINED[self.joined](found, other)
        return found.filter(ImageFilter.GaussianBlur(self.edge)) if self.edge else found

    def weights(self, grid: tuple[int, ...], find: Find | None = None) -> list[float]:
        """Each token's share inside, 0 to 1, row by row; ControlError for a region of no token."""
        found = [light / 255 for light in self.image(grid, find).tobytes()]
        if max(found) < 0.5:
            raise ControlError(f"the region leaves no token of the {grid[-2]} x {grid[-1]} grid; widen it")
        return found

    def tokens(self, grid: tuple[int, ...], what: str = "the region") -> list[int]:
        """The tokens that lie mostly inside, row by row; ControlError for none."""
        found = [i for i, light in enumerate(self.image(grid).tobytes()) if light > 127]
        if not found:
            raise ControlError(f"{what} leaves no token of the {grid[-2]} x {grid[-1]} grid; widen it")
        return found


Find = Callable[[Region, int, int], Image.Image]
"""Where the words of a region are: a grey picture of columns x rows px, of (region, rows, columns)."""


def _difference(a: Image.Image, b: Image.Image) -> Image.Image:
    return ImageChops.darker(a, ImageChops.invert(b))


_JOINED: dict[str, Any] = {
    "union": ImageChops.lighter,
    "intersection": ImageChops.darker,
    "difference": _difference,
}
