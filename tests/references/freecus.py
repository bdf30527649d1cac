"""Dense reference of FreeCus (arXiv 2507.15249): pivotal sharing of a subject's tokens, and its reference's noise level.

Tokens are [B, S, H, D]; q and k enter after qk-norm and before RoPE; outputs are before `to_out`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from references.attention import dense_attention

Sigma = TypeVar("Sigma", float, Tensor)


@dataclass
class Subject:
    """A reference: its row (within each group), foreground image tokens [F] (indices from 0), and ln strength."""

    row: int
    foreground: Tensor
    log_bias: float = 0.0


def pivotal_attention(
    q: Tensor,
    text: tuple[Tensor, Tensor],
    image: tuple[Tensor, Tensor],
    shared: Sequence[tuple[Tensor, Tensor, float]],
    lambda_: float = 1.1,
) -> Tensor:
    """K = [lambda K_1 ; ... ; lambda K_text ; K_img], V = [V_1 ; ... ; V_text ; V_img], all rotated already.

    out = softmax(q K^T / sqrt(D) + [b_1 , ... , 0 , 0]) V; `text` and `image` are a target's own (keys, values),
    `shared` the foreground (keys [B,F_r,H,D], values, b_r) of each reference. Values and queries are not scaled.
    """
    keys = [lambda_ * keys for keys, _, _ in shared] + [lambda_ * text[0], image[0]]
    values = [values for _, values, _ in shared] + [text[1], image[1]]
    biases = [torch.full((keys.shape[1],), bias, dtype=q.dtype) for keys, _, bias in shared]
    biases.append(torch.zeros(text[0].shape[1] + image[0].shape[1], dtype=q.dtype))
    return dense_attention(q, torch.cat(keys, dim=1), torch.cat(values, dim=1), torch.cat(biases))


def freecus_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    subjects: Sequence[Subject],
    text_len: int,
    lambda_: float = 1.1,
    *,
    image_first: bool = False,
    groups: int = 1,
    rotate: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pivotal sharing in one vital layer: the rows of `subjects` are plain attention, all others are targets.

    The sequence is [text | image] (FLUX) or, with `image_first`, [image | text] (SD3). `rotate` (RoPE) acts on
    [B,S,H,D] q and k; a reference's keys keep its own unshifted positions. `groups=2` is a batch doubled for
    guidance: rows count within each half, and a half shares only with itself. No AdaIN. lambda multiplies text keys
    in the target rows alone, even where the foreground is empty.
    """
    length, size = q.shape[1], q.shape[0] // groups
    image = slice(0, length - text_len) if image_first else slice(text_len, length)
    text = slice(length - text_len, length) if image_first else slice(0, text_len)
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    outs = []
    for row in range(q.shape[0]):
        start = row - row % size
        one = slice(row, row + 1)
        if row - start in [subject.row for subject in subjects]:
            outs.append(dense_attention(q[one], k[one], v[one]))
            continue
        shared = []
        for subject in subjects:
            keys, values = (x[start + subject.row, image][subject.foreground][None] for x in (k, v))
            shared.append((keys, values, subject.log_bias))
        own = [(k[one, part], v[one, part]) for part in (text, image)]
        outs.append(pivotal_attention(q[one], *own, shared, lambda_))
    return torch.cat(outs)


def reference_sigma(sigma: Sigma, mu: float) -> Sigma:
    """The reference's cleaner noise level at the step whose stock level is `sigma`.

    A schedule s in 0..1 shifted by mu is sigma = e^mu / (e^mu + 1/s - 1), that is odds(sigma) = e^mu odds(s) with
    odds(x) = x / (1 - x). The reference takes -mu for the same s: odds = e^(-2 mu) odds(sigma). 0 and 1 stay.
    """
    return sigma / (sigma + math.exp(2 * mu) * (1 - sigma))


def calculate_mu(tokens: int, config: Mapping[str, Any]) -> float:
    """The scheduler's mu for so many image tokens.

    Dynamic shifting (FLUX): the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).
    Otherwise (SD3) the fixed `shift`, s -> shift s / (1 + (shift - 1) s), which is mu = ln shift.
    """
    if not config["use_dynamic_shifting"]:
        return math.log(config["shift"])
    slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    return config["base_shift"] + slope * (tokens - config["base_image_seq_len"])
