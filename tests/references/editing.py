"""Editing methods written densely, for one pair of rows: the source s and its edit t. From the papers' equations alone.

Every q, k, v is [S, H, D], rotated where the model rotates; `image` is the slice of the image tokens, all others are
text; `inside` [S_img] is 1 where the picture may change, 0 elsewhere. Maps and masks are materialised.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from references.attention import dense_attention
from references.guidance import Layout


@dataclass(frozen=True)
class Row:
    """One row's q, k, v."""

    q: Tensor
    k: Tensor
    v: Tensor


Equation = Callable[[Row, Row, slice], Tensor]
"""(source, target, image) -> what the target's tokens get, [S, H, D]."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v of [S, H, D]."""
    return dense_attention(q[None], k[None], v[None], bias)[0]


def plain(s: Row, t: Row, image: slice) -> Tensor:
    """No edit."""
    return attend(t.q, t.k, t.v)


def editing(
    equation: Equation, blocks: Collection[int], kinds: Collection[str] = ("joint", "dual")
) -> Callable[[int, str, Tensor, Tensor, Tensor, Layout], Tensor]:
    """Attention of a batch whose row 0 is the source, and every other row an edit of it in the chosen blocks."""

    def sites(index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        out = dense_attention(q, k, v)
        if index in blocks and kind in kinds:
            rows = [Row(*one) for one in zip(q, k, v, strict=True)]
            for i in range(1, len(rows)):
                out[i] = equation(rows[0], rows[i], layout.image)
        return out

    return sites


def by_heads(equation: Equation, heads: Collection[int]) -> Equation:
    """The edit in some heads alone."""

    def chosen(s: Row, t: Row, image: slice) -> Tensor:
        out, edited = plain(s, t, image), equation(s, t, image)
        for head in heads:
            out[:, head] = edited[:, head]
        return out

    return chosen


def _mixed(t: Tensor, s: Tensor, image: slice, kept: Tensor) -> Tensor:
    """Token by token: the source's by `kept`, the target's by 1 - kept; text is the target's."""
    out = t.clone()
    for i, share in enumerate(kept.tolist()):
        token = image.start + i
        out[token] = share * s[token] + (1 - share) * t[token]
    return out


def consistedit(
    inside: Tensor, structure: bool, masked: bool = True, identity: float = 0.0, u: float = 1.0
) -> Equation:
    """ConsistEdit (arXiv 2510.17803): image q, k, v fused with the source's before attention; text is the target's.

    structure (the first floor(alpha T) steps): Q, K <- source everywhere; else M Q_t + (1 - M) Q_s, K alike. V <- M V_t
    + (1 - M) V_s at all steps; `identity` also keeps V inside. Without a mask V is the target's, Q and K after the
    first steps too. `u`: how much of every replacement.
    """

    def equation(s: Row, t: Row, image: slice) -> Tensor:
        m = inside if masked else torch.ones_like(inside)
        shape = torch.ones_like(m) if structure else 1 - m
        content = (1 - m) + identity * m
        q, k, v = (
            _mixed(getattr(t, name), getattr(s, name), image, u * kept)
            for name, kept in (("q", shape), ("k", shape), ("v", content))
        )
        return attend(q, k, v)

    return equation


def _guided(q: Tensor, image: slice, keys: tuple[Tensor, Tensor], there: Tensor, inside: Tensor) -> Tensor:
    """fg M + bg (1 - M) of dense attention to keys [S], whose image tokens `there` [S_img] are the foreground.

    Image queries see the foreground's (the background's) image keys and all text; text queries see everything.
    """
    s = len(keys[0])
    results = []
    for seen in (there > 0.5, there <= 0.5):
        allowed = torch.ones(s, s, dtype=torch.bool)
        for query in range(image.start, image.stop):
            allowed[query, image] = seen
        bias = torch.zeros(s, s, dtype=q.dtype).masked_fill(~allowed, -torch.inf)
        results.append(attend(q, *keys, bias))
    fg, bg = results
    mix = torch.ones(s, 1, 1, dtype=q.dtype)
    mix[image] = inside[:, None, None]
    return fg * mix + bg * (1 - mix)


def ditctrl(there: Tensor | None = None, inside: Tensor | None = None, u: float = 1.0) -> Equation:
    """DiTCtrl (arXiv 2412.18597): Attn(Q_t, K_s, V_s), text included; with masks fg M_t + bg (1 - M_t).

    `there`: the source's mask, `inside`: the target's [S_img].
    """

    def equation(s: Row, t: Row, image: slice) -> Tensor:
        if there is None:
            new = attend(t.q, s.k, s.v)
        else:
            new = _guided(t.q, image, (s.k, s.v), there, there if inside is None else inside)
        return u * new + (1 - u) * plain(s, t, image)

    return equation


def masactrl(there: Tensor | None = None, inside: Tensor | None = None, u: float = 1.0) -> Equation:
    """MasaCtrl (arXiv 2304.08465) on a joint sequence: the image's K, V are the source's, the text's the target's own.

    Without masks `u` mixes keys and values; with masks, the results.
    """

    def equation(s: Row, t: Row, image: slice) -> Tensor:
        keys = [
            _mixed(mine, theirs, image, torch.ones(image.stop - image.start))
            for mine, theirs in ((t.k, s.k), (t.v, s.v))
        ]
        if there is not None:
            new = _guided(t.q, image, (keys[0], keys[1]), there, there if inside is None else inside)
            return u * new + (1 - u) * plain(s, t, image)
        return attend(t.q, *(u * new + (1 - u) * old for new, old in zip(keys, (t.k, t.v), strict=True)))

    return equation


def stableflow(inside: Tensor | None = None, u: float = 1.0) -> Equation:
    """StableFlow (arXiv 2411.14430): the image's K, V are the source's; with a region outside of it alone."""

    def equation(s: Row, t: Row, image: slice) -> Tensor:
        kept = torch.ones(image.stop - image.start) if inside is None else 1 - inside
        return attend(t.q, _mixed(t.k, s.k, image, u * kept), _mixed(t.v, s.v, image, u * kept))

    return equation
