"""Perturbations of attention by head: SoftPAG, PAG and SEG (arXiv 2506.10978, 2403.17377, 2408.00760)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..control import Call
from ..effect import Attended, Effect
from ..errors import ControlError
from ..guide import Guide
from ..layout import Site
from ..registry import register
from ..statistics import widened
from ..where import Where, listed_heads

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Target = Literal["identity", "uniform", "query-mean", "self-text"]
Degree = float | tuple[float, ...]


class Perturbation(Guide):
    """What the perturbations of attention are made of: lerp(attention, worse attention, u) for the chosen heads."""

    u: Degree = Field(
        1.0, description="how far, 0 (off) to 1: one number, or one for each head as `heads` lists them (L14H7 L14H17)"
    )
    rows: Literal["all", "image"] = Field("all", description="the tokens that get the worse attention")
    row_heads: tuple[str, ...] | None = Field(
        None, description="heads by picture of the batch, for searches that try many sets at once; all within `where`"
    )

    @field_validator("u", mode="after")
    @classmethod
    def _within(cls, value: Degree) -> Degree:
        if not all(0 <= one <= 1 for one in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("u lies between 0 (off) and 1 (wholly perturbed)")
        return value

    @model_validator(mode="after")
    def _one_for_each(self) -> Perturbation:
        if isinstance(self.u, tuple) and len(self.u) != len(listed_heads(self.where.heads)):
            count = len(listed_heads(self.where.heads))
            raise ValueError(f"u has {len(self.u)} numbers for {count} listed heads; write heads as L14H7, L14H17")
        return self

    @property
    def off(self) -> bool:
        """Whether nothing is perturbed, or nothing of it used."""
        return super().off or self.u == 0 or (isinstance(self.u, tuple) and not any(self.u))

    def gate(self, site: Site, heads: tuple[int, ...] | None, device: torch.device) -> Tensor | None:
        """u by head [H], or by picture and head [B, H]; None for 1 everywhere."""
        import torch

        if self.row_heads is not None:
            return torch.stack([self._degrees(site, listed_heads(text)) for text in self.row_heads]).to(device)
        if isinstance(self.u, tuple):
            return self._degrees(site, listed_heads(self.where.heads)).to(device)
        gate = super().gate(site, heads, device)
        return gate if self.u == 1.0 else self.u * (torch.ones(site.heads, device=device) if gate is None else gate)

    def check(self, call: Call) -> None:
        """Raise ControlError where `row_heads` has not one set of heads for each picture."""
        if self.row_heads is not None and len(self.row_heads) != call.pictures:
            raise ControlError(f"row_heads lists {len(self.row_heads)} sets of heads for {call.pictures} pictures")

    def pictures_of(self, call: Call) -> Tensor | None:
        """The picture of every row of a call, where heads are chosen by picture."""
        if self.row_heads is None:
            return None
        rows = [*(guest.follows for guest in call.guests), *range(call.pictures)]
        return call.once("pictures", lambda: call.index(rows * len(call.groups)))

    def _degrees(self, site: Site, listed: list[tuple[int | None, int]]) -> Tensor:
        import torch

        degrees = torch.zeros(site.heads)
        for i, (block, head) in enumerate(listed):
            if block in (None, site.index):
                if head >= site.heads:
                    raise ControlError(f"row_heads: H{head}; block {site.index} has heads 0-{site.heads - 1}")
                degrees[head] = self.u[i] if isinstance(self.u, tuple) else self.u
        return degrees


@dataclass(frozen=True)
class PerturbingEffect(Effect):
    """lerp(out, worse, u) on the chosen rows; `worse` is one of the targets, or a blurred query."""

    target: Target | Literal["blurred"]
    image_only: bool
    kernel: tuple[Tensor, Tensor] | None = None
    pictures: Tensor | None = None
    """Where degrees differ by picture, the picture of every row [B]."""

    def output(self, at: Attended) -> Tensor:
        """The perturbed result [B, S, H, D]; attention itself is left out where nothing of it remains."""
        import torch

        worse = self._worse(at)
        start, stop = at.layout.image if self.image_only else (0, worse.shape[1])
        whole = stop - start == worse.shape[1]
        if at.gate is None and whole:
            return worse
        out = at.out()
        amount = torch.ones((), device=out.device) if at.gate is None else self._by_row(at.gate)
        part = out[:, start:stop]
        mixed = torch.lerp(widened(part), widened(worse[:, start:stop]), amount.to(widened(part).dtype)).to(out.dtype)
        return mixed if whole else torch.cat([out[:, :start], mixed, out[:, stop:]], dim=1)

    def _by_row(self, degree: Tensor) -> Tensor:
        """[H], or [pictures, H], to fit [B, S, H, D]."""
        return degree.reshape(1, 1, -1, 1) if self.pictures is None else degree[self.pictures][:, None, :, None]

    def _worse(self, at: Attended) -> Tensor:
        import torch

        if self.target == "identity":
            return at.v
        if self.target == "uniform":
            if len(at.branches) > 1:  # a query of zeros reads everything alike
                return at.attend(torch.zeros_like(at.q[:, :1])).expand_as(at.v)
            return widened(at.v).mean(1, keepdim=True).to(at.v.dtype).expand_as(at.v)
        if self.target == "query-mean":
            queries = at.layout.image_of(at.q) if self.image_only else at.q
            mean = widened(queries).mean(1, keepdim=True).to(at.q.dtype)
            return at.attend(mean).expand_as(at.v)
        if self.target == "self-text":
            return self_and_text(at)
        return at.attend(at.layout.with_image(at.q, blurred(at.layout.image_of(at.q), at.layout.grid, self.kernel)))


def self_and_text(at: Attended) -> Tensor:
    """Image rows attend to themselves and the text, text rows as usual (diffusers' PAG for SD3) -> [B, S, H, D].

    p = sigmoid(q_i.k_i / sqrt d - lse_text), out = p v_i + (1 - p) attention(q_i, K_text, V_text), without a mask.
    """
    import torch

    from ..attention import attend_with_lse

    start, stop = at.layout.image
    q, k, v = (x[:, start:stop] for x in (at.q, at.k, at.v))
    texts = [torch.cat([x[:, :start], x[:, stop:]], dim=1) for x in (at.k, at.v)]
    if texts[0].shape[1] == 0:
        return at.layout.with_image(at.out(), v)
    read, lse = attend_with_lse(q, *texts)
    own = (q.to(lse.dtype) * k.to(lse.dtype)).sum(-1) / math.sqrt(q.shape[-1])
    share = torch.sigmoid(own - lse.transpose(1, 2)).unsqueeze(-1)
    return at.layout.with_image(at.out(), torch.lerp(read.to(lse.dtype), v.to(lse.dtype), share).to(v.dtype))


def gaussian(sigma: float, side: int) -> Tensor:
    """A normalised kernel of ceil(6 sigma) taps made odd, at most 2 side - 1, which a reflected row can bear."""
    import torch

    taps = min(math.ceil(6 * sigma) | 1, 2 * side - 1)
    x = torch.arange(taps) - taps // 2
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def blurred(image: Tensor, grid: tuple[int, ...], kernel: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries [B, rows * columns, H, D] blurred over their grid by a kernel an axis; None means their mean."""
    from torch.nn.functional import conv2d, pad

    if kernel is None:
        return widened(image).mean(1, keepdim=True).to(image.dtype).expand_as(image)
    x = widened(image).unflatten(1, grid).permute(0, 3, 4, 1, 2).flatten(0, 2).unsqueeze(1)
    down, across = (taps.to(x) for taps in kernel)
    x = pad(x, (len(across) // 2,) * 2 + (len(down) // 2,) * 2, mode="reflect")
    x = conv2d(conv2d(x, down.view(1, 1, -1, 1)), across.view(1, 1, 1, -1))
    batch, _, heads, width = image.shape
    return x.view(batch, heads, width, -1).permute(0, 3, 1, 2).to(image.dtype)


@register
class SoftPAG(Perturbation):
    """SoftPAG: chosen heads attend, by a degree u, only to themselves, and the picture is pushed away from that.

    A_soft = (1 - u) A + u I over the joint map, so that a head's output is lerp(attention, V, u) (arXiv 2506.10978).
    """

    kind: Literal["softpag"] = "softpag"
    u: Degree = 0.5
    target: Target = Field(
        "identity", description="the worse attention: a token itself, the mean of V, the mean query's, itself and text"
    )

    title: ClassVar[str] = "SoftPAG"
    source: ClassVar[str] = "arXiv 2506.10978"

    def plan(self, call: Call) -> Effect:
        """The same at every step."""
        only = self.rows == "image" or self.target == "self-text"
        return PerturbingEffect(self.target, only, None, self.pictures_of(call))


@register
class PAG(Perturbation):
    """Perturbed-attention guidance: chosen blocks attend only to themselves.

    No blocks are published for FLUX and SD3: a middle third by default.
    """

    kind: Literal["pag"] = "pag"
    where: Where = Where(blocks="middle")
    rule: Literal["joint", "self-text"] = Field(
        "joint",
        description="every token sees itself (HeadHunter's), or image tokens themselves and the text (diffusers', SD3)",
    )

    title: ClassVar[str] = "PAG"
    source: ClassVar[str] = "arXiv 2403.17377"

    def plan(self, call: Call) -> Effect:
        """The same at every step."""
        target: Target = "identity" if self.rule == "joint" else "self-text"
        return PerturbingEffect(target, self.rule != "joint", None, self.pictures_of(call))


@register
class SEG(Perturbation):
    """Smoothed-energy guidance: image queries are blurred over their grid.

    The query is the one that enters the softmax.
    """

    kind: Literal["seg"] = "seg"
    where: Where = Where(blocks="middle")
    sigma: float = Field(10000.0, gt=0.0, description="of the blur, in tokens; beyond 9999 all queries are their mean")
    rows: Literal["all", "image"] = "image"

    title: ClassVar[str] = "SEG"
    source: ClassVar[str] = "arXiv 2408.00760"

    def check(self, call: Call) -> None:
        """Raise ControlError where a view shows a part of the grid."""
        super().check(call)
        if call.layout.shown is not None and self.sigma <= 9999:
            raise ControlError("seg blurs over the whole grid, and another control's view shows a part of it")

    def plan(self, call: Call) -> Effect:
        """The kernel for this grid."""
        kernel = None
        if self.sigma <= 9999:
            rows, columns = call.layout.grid
            kernel = gaussian(self.sigma, rows), gaussian(self.sigma, columns)
        return PerturbingEffect("blurred", True, kernel, self.pictures_of(call))
