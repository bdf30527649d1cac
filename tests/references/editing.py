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


def addit(
    gamma: float | None = None, ratio: float = 1.05, odds: float = 1.0, inside: Tensor | None = None,
    heads: Collection[int] | None = None,
) -> Equation:  # fmt: skip
    """Add-it (arXiv 2411.07232): softmax(Q [K_source,image ; gamma K]^T / sqrt(D)) [V_source,image ; V].

    Without a gamma: the one with which the edit's own image gets `ratio` times the attention of the source's image, on
    the mean over `heads` (None: all) and image tokens that read the source; found by bisection. `odds` multiplies the
    source's weights; image tokens inside do not read it.
    """

    def joint(s: Row, t: Row, image: slice, g: float) -> Tensor:
        bias = torch.zeros(len(t.q), image.stop - image.start + len(t.k), dtype=t.q.dtype)
        bias[:, : image.stop - image.start] = torch.tensor(odds).log()
        if inside is not None:
            bias[image, : image.stop - image.start] += (1 - inside).log()[:, None]
        logits = torch.einsum("qhd,khd->hqk", t.q, torch.cat([s.k[image], g * t.k])) / t.q.shape[-1] ** 0.5
        return torch.softmax(logits + bias, -1)

    def excess(s: Row, t: Row, image: slice, g: float) -> float:
        size = image.stop - image.start
        p = joint(s, t, image, g)[list(heads) if heads is not None else slice(None), image]
        if inside is not None:
            p = p[:, inside < 0.5]
        mine, theirs = p[..., size + image.start : size + image.stop].sum(-1).mean(), p[..., :size].sum(-1).mean()
        return float(mine / theirs) - ratio

    def equation(s: Row, t: Row, image: slice) -> Tensor:
        g = gamma
        if g is None:
            low, high = 0.5, 2.0
            assert excess(s, t, image, low) < 0 < excess(s, t, image, high), "no case"
            for _ in range(50):
                g = (low + high) / 2
                low, high = (g, high) if excess(s, t, image, g) < 0 else (low, g)
        assert g is not None
        return torch.einsum("hqk,khd->qhd", joint(s, t, image, g), torch.cat([s.v[image], t.v]))

    return equation


def colorctrl(inside: Tensor | None = None, u: float = 1.0) -> Equation:
    """ColorCtrl (arXiv 2508.09131): P[image, image] <- P_source[image, image]; V <- M V_t + (1 - M) V_s of image tokens.

    The rest of a row of P, which sums to 1, is the target's own text columns in their proportions.
    """

    def equation(s: Row, t: Row, image: slice) -> Tensor:
        kept = torch.zeros(image.stop - image.start) if inside is None else 1 - inside
        v = _mixed(t.v, s.v, image, u * kept)
        maps = []
        for row in (s, t):
            maps.append(torch.softmax(torch.einsum("qhd,khd->hqk", row.q, row.k) / row.q.shape[-1] ** 0.5, -1))
        source, own = maps
        text = [i for i in range(len(t.q)) if not image.start <= i < image.stop]
        p = own.clone()
        p[:, image, image] = source[:, image, image]
        if text:
            left = 1 - source[:, image, image].sum(-1)
            for column in text:
                p[:, image, column] = left * own[:, image, column] / own[:, image][..., text].sum(-1)
        else:
            p[:, image, image] = source[:, image, image]
        p = u * p + (1 - u) * own
        return torch.einsum("hqk,khd->qhd", p, v)

    return equation
