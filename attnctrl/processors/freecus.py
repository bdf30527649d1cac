"""FreeCus: a subject kept from one picture, without training (arXiv 2507.15249)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic import Field, field_validator, model_validator

from ..reference import Reference
from ..registry import register
from ..where import Where
from .sharing import KeyScale, Scale, SharingControl


@register
class FreeCus(SharingControl):
    """FreeCus: the subject of a picture appears in every prompt; its foreground is shared in the vital blocks.

    Attn(Q, [a K_ref_fg ; a K_text ; K], [V_ref_fg ; V_text ; V]), a = 1.1, no AdaIN, reference keys at their own
    positions. The reference's noise level is the `finer` one, of the reversed schedule shift, while the model hears the
    step's own. Several references bring several subjects. Blocks: the ten vital ones of FLUX.1, elsewhere those at the
    same relative depth (not searched anew).
    """

    kind: Literal["freecus"] = "freecus"
    where: Where = Where(blocks="vital")
    key_scale: KeyScale = Field(1.1, description="a, for the reference's keys")
    text_scale: Scale = Field(1.1, description="a, for the text's keys")
    adain_queries: bool = False
    adain_keys: bool = False
    additive: Literal["copy", "move", "none"] = "none"
    reference: Reference | tuple[Reference, ...] = Field(
        description="a picture of the subject, or several; mask: its foreground, caption: appended to every prompt"
    )

    title: ClassVar[str] = "FreeCus (keeps a subject)"
    source: ClassVar[str] = "arXiv 2507.15249"

    @field_validator("reference", mode="after")
    @classmethod
    def _finer(cls, value: Reference | tuple[Reference, ...]) -> Any:
        """A noise level that was not asked for is the finer one."""
        if isinstance(value, tuple):
            return tuple(cls._finer(one) for one in value)
        return value if "noise" in value.model_fields_set else value.model_copy(update={"noise": "finer"})

    @model_validator(mode="after")
    def _has_reference(self) -> FreeCus:
        if not self.references():
            raise ValueError("freecus needs a reference picture")
        return self

    def amend(self, prompt: str) -> str:
        """The prompt with the references' captions after it."""
        return ", ".join([prompt, *(one.caption for one in self.references() if one.caption)])


def described(reference: Reference, describe: Callable[[Image.Image], str], words: int = 20) -> Reference:
    """The reference with a caption by `describe`, any function from picture to text, cut to so many words (FreeCus)."""
    return reference.model_copy(update={"caption": " ".join(describe(reference.picture).split()[:words])})
