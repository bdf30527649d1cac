"""Muon: momentum updates made orthogonal (K. Jordan et al., 2024), batched by shape, in bfloat16 where it is fast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonal(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices [n, rows, columns] with all singular values moved near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype).contiguous()
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """For weight matrices only; the update's size matches AdamW's, so the same rates serve (Liu et al., 2025)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
                for parameter in parameters:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                momenta = [self.state[parameter]["momentum"] for parameter in parameters]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                updates = orthogonal(
                    torch.stack(torch._foreach_lerp(grads, momenta, group["momentum"])), dtype=self.dtype
                )
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(parameters, (0.2 * max(shape) ** 0.5 * group["lr"] * updates).unbind())


def split(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden weight matrices for Muon; embeddings, first and last layers, gains and biases for AdamW."""
    ends = ("x_embedder", "pos_embed", "shared", "position_embedding", "token_embedding", "relative_attention")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        last = name in ("transformer.proj_out.weight", "transformer.norm_out.linear.weight")
        outer = last or any(end in name for end in ends)
        (matrices if parameter.ndim == 2 and not outer else rest).append(parameter)
    return matrices, rest
