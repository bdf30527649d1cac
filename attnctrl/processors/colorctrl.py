"""ColorCtrl: colours change, how image tokens attend to each other does not (arXiv 2508.09131)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..branch import Branch, Branches
from ..control import Call
from ..effect import Attended, Effect, Features
from ..registry import register
from ..where import Where
from .editing import EditControl, Pairs

if TYPE_CHECKING:
    from torch import Tensor


@register
class ColorCtrl(EditControl):
    """ColorCtrl: the map of image tokens on image tokens is the source's, values outside the region are too.

    P[image, image] <- P_source[image, image]; what that leaves of a row goes to the text's columns in the edit's own
    proportions, so that rows sum to 1; V <- M V + (1 - M) V_source of image tokens. Text tokens attend as ever. The
    paper does not fix blocks and steps: ConsistEdit's blocks, all steps.
    """

    kind: Literal["colorctrl"] = "colorctrl"
    where: Where = Where(blocks="editable")
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much of it all; 0 is off, bit for bit")

    title: ClassVar[str] = "ColorCtrl (recolours)"
    source: ClassVar[str] = "arXiv 2508.09131"
    claims: ClassVar[frozenset[str]] = frozenset({"the image values", "what edits read"})

    @property
    def weaker(self) -> str:
        """Less of the source's map."""
        return f"{self.kind} with fewer steps, or strength={self.strength / 2:.2g}"

    def plan(self, call: Call) -> ColorEffect:
        """Rows, and how much of the source's values each image token takes."""
        share = call.once(("values", id(self)), lambda: self._share(call))
        return ColorEffect(self.pairs(call), share, call.constant(self.strength, unless=1.0))

    def _share(self, call: Call) -> Tensor | None:
        inside = self.inside(call)
        return None if inside is None else (self.strength * (1 - inside))[:, None, None]


@dataclass(frozen=True)
class ColorEffect(Effect):
    """Image tokens' values the source's by `share` [S_img, 1, 1], their map on each other by `amount` []."""

    pairs: Pairs
    share: Tensor | None
    amount: Tensor | None

    def features(self, at: Features) -> tuple[Tensor, Tensor, Tensor]:
        """The values."""
        return at.q, at.k, at.v if self.share is None else self.pairs.replaced(at.v, self.share, at)

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        """Wholly replaced, edits' image tokens read nothing of their own image; `output` gives them the source's."""
        import torch

        if self.amount is not None or at.gate is not None:
            return branches
        first = branches[0]
        assert isinstance(first, Branch)
        start, stop = at.layout.image
        tokens = torch.arange(at.layout.length, device=at.q.device)
        text = torch.cat([tokens[:start], tokens[stop:]])
        new: list[Branch] = []
        if len(text):
            new = [
                self.pairs.reading(first, False, None, text),
                self.pairs.reading(first, False, text, tokens[start:stop]),
            ]
        return self.pairs.instead(branches, tuple(new), at)

    def output(self, at: Attended) -> Tensor:
        """The source's map on its image, times the edits' values, and the text with what is left of the row."""
        import torch

        from ..attention import attend_with_lse

        out, pairs = at.out(), self.pairs
        image, mine, theirs = at.layout.image_of(out), pairs.targets.index, pairs.sources
        q, k, v = (at.layout.image_of(x) for x in (at.q, at.k, at.v))
        text_k, text_v = (_beside(x, at) for x in (at.k, at.v))
        seen, lse = attend_with_lse(q[theirs], k[theirs], v[mine])
        new, replaced = seen, image[mine]
        if text_k.shape[1]:
            rest = attend_with_lse(q[theirs], text_k[theirs], text_v[theirs])[1]
            share = torch.sigmoid(lse - rest).transpose(1, 2).unsqueeze(-1)
            whole = self.amount is None and at.gate is None
            text = replaced if whole else attend_with_lse(q[mine], text_k[mine], text_v[mine])[0]
            new = torch.lerp(text, seen, share.to(text.dtype))
        if self.amount is not None or at.gate is not None:
            amount = new.new_ones(()) if self.amount is None else self.amount.to(new)
            amount = amount if at.gate is None else amount * at.gate.to(new).reshape(-1, 1)
            new = torch.lerp(replaced, new, amount)
        return at.layout.with_image(out, image.index_copy(0, mine, new))


def _beside(x: Tensor, at: Attended) -> Tensor:
    """Tokens that are no image's."""
    import torch

    start, stop = at.layout.image
    return torch.cat([x[:, :start], x[:, stop:]], dim=1)
