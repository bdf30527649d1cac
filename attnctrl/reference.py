"""Pictures that controls follow, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from .arrays import is_array
from .descriptions import Description
from .pictures import Picture
from .region import Region


class Reference(Description):
    """A picture to follow, as one more batch row that is noised to each step's level and dropped from the result.

    One fixed noise, no inversion: AlignedGen's external reference (arXiv 2509.17088). The level `finer`: FreeCus
    (arXiv 2507.15249).
    """

    picture: Picture = Field(description="the picture itself")
    caption: str = Field("", description="what it shows; empty is the empty prompt")
    seed: int = Field(0, ge=0, lt=2**63, description="draws its one noise")
    mask: Region | Picture | None = Field(
        None, description="white where it may be read, of the picture's size, or a region; none: everywhere"
    )
    strength: float = Field(1.0, gt=0.0, description="multiplies the odds of its tokens, beside the control's own")
    noise: Literal["step", "finer"] = Field(
        "step", description="the scheduler's level, or the one under the reversed schedule shift: more detail"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_picture(cls, value: Any) -> Any:
        """A picture alone is a reference with no caption."""
        return {"picture": value} if isinstance(value, (str, Path, Image.Image)) or is_array(value) else value

    @model_validator(mode="after")
    def _mask_fits(self) -> Reference:
        mask = self.mask
        if mask is not None and not isinstance(mask, Region) and mask.size != self.picture.size:
            sizes = " and ".join(f"{one.width} x {one.height} px" for one in (self.picture, mask))
            raise ValueError(f"picture and mask are {sizes}; give a mask of the picture's size")
        if mask is not None and not isinstance(mask, Region) and not mask.convert("L").getextrema()[1]:
            raise ValueError(
                "the mask is black all over, so that nothing of the picture is read; what is read is white"
            )
        return self

    def foreground(self, grid: tuple[int, ...]) -> list[int] | None:
        """The tokens of a (rows, columns) grid that lie mostly in the mask; None without one. ControlError for none."""
        if self.mask is None:
            return None
        region = self.mask if isinstance(self.mask, Region) else Region(mask=self.mask)
        return region.tokens(grid, "the reference's mask")
