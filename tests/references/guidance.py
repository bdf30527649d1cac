"""Dense reference attention for perturbation guidance (SoftPAG, PAG, SEG) and normalised attention guidance (NAG).

q, k, v [B, S, H, D] are taken as they enter the softmax: after qk-norm and, on FLUX, after rotation. Maps [B, H, S, S]
are materialised; everything is plain torch in the dtype of its inputs. Outputs are before `to_out`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The image tokens of a sequence: the first one and the grid (rows, columns), row-major; all others are text."""

    start: int
    grid: tuple[int, int]

    @property
    def image(self) -> slice:
        return slice(self.start, self.start + self.grid[0] * self.grid[1])


Target = Callable[[Tensor, Tensor, Layout], Tensor]
"""(q, k, layout) -> the map [B, H, S, S] that a perturbation leads to; every row sums to 1."""


def attention_map(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) over the keys that are `visible` [S, S] (True: seen)."""
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if visible is not None:
        logits = logits.masked_fill(~visible, -math.inf)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def perturbed_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, target: Target, u: Sequence[float] | Tensor
) -> Tensor:
    """A' v with A' = (1 - u_h) A + u_h T for head h (SoftPAG, arXiv 2506.10978, with T = I); u [H], 0 leaves a head."""
    share = torch.as_tensor(u, dtype=q.dtype)[:, None, None]
    changed = (1 - share) * attention_map(q, k) + share * target(q, k, layout)
    return torch.einsum("bhqk,bkhd->bqhd", changed, v)


# ---------------------------------------------------------------- what a map may be led to


def identity_map(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """I over the full joint map: every token, text too, attends to itself alone (PAG is u = 1)."""
    batch, tokens, heads, _ = q.shape
    return torch.eye(tokens, dtype=q.dtype).expand(batch, heads, tokens, tokens)


def uniform_map(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """1/S everywhere."""
    return torch.full_like(attention_map(q, k), 1 / k.shape[1])


def query_mean_map(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """Every row is the map of the mean of all queries (SEG of infinite blur over the whole sequence)."""
    return attention_map(q.mean(dim=1, keepdim=True).expand_as(q), k)


def image_query_mean_map(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """Image rows are the map of the mean of the image's queries; the others keep their own."""
    changed = q.clone()
    changed[:, layout.image] = q[:, layout.image].mean(dim=1, keepdim=True)
    return attention_map(changed, k)


def self_text_map(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
    """diffusers' PAG for SD3: image tokens see the text and, of the image, themselves alone; text rows as usual."""
    visible = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool)
    n_image = layout.grid[0] * layout.grid[1]
    visible[layout.image, layout.image] = torch.eye(n_image, dtype=torch.bool)
    return attention_map(q, k, visible)


def image_rows(target: Target) -> Target:
    """`target` for the image's rows of the map; the other rows stay."""

    def restricted(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
        out = attention_map(q, k)
        out[:, :, layout.image] = target(q, k, layout)[:, :, layout.image]
        return out

    return restricted


# ---------------------------------------------------------------- SEG (arXiv 2408.00760)


def blurred_query_map(sigma: float) -> Target:
    """The map of queries blurred over the image's true grid, sigma in tokens; above 9999 of their mean."""

    def target(q: Tensor, k: Tensor, layout: Layout) -> Tensor:
        if sigma > 9999:
            return image_query_mean_map(q, k, layout)
        rows, columns = (axis_blur(side, sigma).to(q.dtype) for side in layout.grid)
        image = q[:, layout.image].unflatten(1, layout.grid)
        changed = q.clone()
        changed[:, layout.image] = torch.einsum("xr,yc,brchd->bxyhd", rows, columns, image).flatten(1, 2)
        return attention_map(changed, k)

    return target


def axis_blur(side: int, sigma: float) -> Tensor:
    """[side, side]: row i holds the weights of the tokens that make up the blurred token i, in float64.

    Gaussian of ceil(6 sigma) taps made odd, at most 2 * side - 1 (as far as one reflection reaches), summing to 1;
    beyond the edge the grid is reflected without repeating the edge.
    """
    taps = math.ceil(6 * sigma)
    reach = min(taps // 2, side - 1)
    weights = {offset: math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-reach, reach + 1)}
    total = sum(weights.values())
    out = torch.zeros(side, side, dtype=torch.float64)
    for i in range(side):
        for offset, weight in weights.items():
            j = abs(i + offset)
            out[i, j if j < side else 2 * (side - 1) - j] += weight / total
    return out


# ---------------------------------------------------------------- NAG (arXiv 2505.21179)


def nag(zpos: Tensor, zneg: Tensor, phi: float, tau: float, alpha: float, norm: int = 1, guard: float = 1e-7) -> Tensor:
    """alpha Z^ + (1 - alpha) Z+,  Z^ = Z~ min(r, tau) / r,  Z~ = phi Z+ - (phi - 1) Z-,  r = |Z~| / |Z+|.

    z [B, S, H*D]: norms are per token over merged heads, L1 or L2; r = |Z~| / (|Z+| + guard) is divided by r + guard.
    """
    guided = phi * zpos - (phi - 1) * zneg
    size, usual = ((z.abs() ** norm).sum(dim=-1, keepdim=True) ** (1 / norm) for z in (guided, zpos))
    ratio = size / (usual + guard)
    return alpha * guided * ratio.clamp(max=tau) / (ratio + guard) + (1 - alpha) * zpos


def nag_attention(out: Tensor, layout: Layout, **options: float) -> Tensor:
    """NAG on attention outputs [2n, S, H, D], rows [positive x n ; negative x n]; `options` are those of `nag`.

    The image tokens of both halves become the guided ones; text tokens keep their own.
    """
    zpos, zneg = out[:, layout.image].flatten(2).chunk(2)
    result = out.clone()
    result[:, layout.image] = nag(zpos, zneg, **options).repeat(2, 1, 1).unflatten(2, out.shape[2:])
    return result
