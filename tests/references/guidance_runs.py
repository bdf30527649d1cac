"""What the tests of guidance compare with: one naive step of each control, and a naive run of a pipeline.

A run begins with what the stock pipeline hands to its transformer first, so that texts, noise and schedule are its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from references.guidance_models import Change, nag_attend, permutation, perturbing, sd3_velocity
from references.guidance_sample import ProjectedGuidance, euler, guided

SCALE = 3.0  # of classifier-free guidance
GRID = (4, 6)
NEGATIVE = "a rag"
Passes = tuple[dict[str, Any], dict[str, Any] | None]
"""The arguments of the transformer with the prompts and, under CFG, with the negative prompts."""


@dataclass(frozen=True)
class Model:
    """A tiny random pipeline and its naive velocity."""

    build: Callable[..., Any]
    velocity: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def sd3(self) -> bool:
        return self.velocity is sd3_velocity

    @functools.cached_property
    def pipe(self) -> Any:
        """The pipeline in float32, for whole runs."""
        return self.build(**self.options)

    @functools.cached_property
    def exact(self) -> Any:
        """The pipeline with a float64 transformer, for single calls and for the naive side."""
        pipe = self.build(**self.options)
        pipe.transformer.double()
        return pipe


@dataclass
class Naive:
    """The velocities of one run at latents x and noise level sigma."""

    model: Model
    passes: Passes

    def cond(self, x: Tensor, sigma: float, change: Change | None = None, **more: Any) -> Tensor:
        return self._velocity({**self.passes[0], **more}, x, sigma, change)

    def uncond(self, x: Tensor, sigma: float) -> Tensor | None:
        return None if self.passes[1] is None else self._velocity(self.passes[1], x, sigma, None)

    def _velocity(self, call: dict[str, Any], x: Tensor, sigma: float, change: Change | None) -> Tensor:
        time = torch.full((len(x),), sigma * (1000 if self.model.sd3 else 1), dtype=x.dtype)
        with torch.no_grad():
            here = {**call, "hidden_states": x, "timestep": time}
            return self.model.velocity(self.model.exact.transformer, here, change)


@dataclass(frozen=True)
class Guide:
    """A perturbation guidance: what is asked for, and the perturbed pass at a step."""

    control: Any
    change: Callable[[int], Change]

    def outputs(self, naive: Naive, step: int, sigma: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the transformer is to return for the prompts and for the negative prompts."""
        cond, uncond = naive.cond(x, sigma), naive.uncond(x, sigma)
        delta = self.control.strength * (cond - naive.cond(x, sigma, self.change(step)))
        return cond + delta, None if uncond is None else uncond + delta

    def velocity(self, naive: Naive, step: int, sigma: float, x: Tensor) -> Tensor:
        """The guided velocity of a step."""
        cond, uncond = naive.cond(x, sigma), naive.uncond(x, sigma)
        return guided(cond, [(self.control.strength, naive.cond(x, sigma, self.change(step)))], uncond, SCALE)


def attending(control: Any, target: Any, amounts: dict[int, list[float]], **more: Any) -> Guide:
    """Attention led to `target`; the other arguments are those of `perturbing`."""
    return Guide(control, lambda step: Change(perturbing(target, amounts, **more)))


def shuffling(control: Any, blocks: list[int], seed: int) -> Guide:
    """TPG at some blocks."""
    tokens = GRID[0] * GRID[1]
    return Guide(control, lambda step: Change(permute={b: permutation(seed, step, b, tokens) for b in blocks}))


@dataclass(frozen=True)
class Negative:
    """NAG by a second row that differs in its text tokens alone.

    With the prompt's pooled text in both rows (`shared_pooled`) their image tokens are equal from block to block: one
    image stream with two texts, as in the authors' SD3 pipeline. With the negative prompt's own pooled text the rows
    are modulated differently and drift apart.
    """

    control: Any
    blocks: Collection[int] = range(9)
    options: dict[str, float] = field(default_factory=dict)
    """The options of the reference, where they are not the defaults."""
    shared_pooled: bool = True
    kinds: Collection[str] = ("joint",)

    def outputs(self, naive: Naive, step: int, sigma: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the transformer is to return for the prompts and for the negative prompts."""
        call, usual = naive.passes[0], {"phi": 5.0, "tau": 2.5, "alpha": 0.125 if naive.model.sd3 else 0.25, "norm": 1}
        rows = {name: torch.cat([call[name]] * 2) for name in ("guidance", "pooled_projections") if name in call}
        text = call["encoder_hidden_states"]
        negative, pooled = negative_said(naive.model, text.shape[1])
        rows["encoder_hidden_states"] = torch.cat([text, negative.expand_as(text)])
        if not self.shared_pooled:
            rows["pooled_projections"][len(x) :] = pooled
        change = Change(nag_attend(self.blocks, self.kinds, **{**usual, **self.options}))
        both = naive.cond(torch.cat([x, x]), sigma, change, **rows)
        return both[: len(x)], naive.uncond(x, sigma)

    def velocity(self, naive: Naive, step: int, sigma: float, x: Tensor) -> Tensor:
        """The guided velocity of a step."""
        cond, uncond = self.outputs(naive, step, sigma, x)
        return guided(cond, [], uncond, SCALE)


def negative_said(model: Model, length: int) -> tuple[Tensor, Tensor]:
    """The text [1, length, C] and the pooled text [1, P] of the negative prompt."""
    options = {"do_classifier_free_guidance": False, "prompt_3": None} if model.sd3 else {}
    with torch.no_grad():
        length -= 32 if model.sd3 else 0
        said = model.exact.encode_prompt([NEGATIVE], prompt_2=None, max_sequence_length=length, **options)
    return said[0].double(), said[2 if model.sd3 else 1].double()


@dataclass
class Projected:
    """APG; its own combination replaces the pipeline's."""

    options: dict[str, float]
    state: ProjectedGuidance | None = None

    def velocity(self, naive: Naive, step: int, sigma: float, x: Tensor) -> Tensor:
        """The guided velocity of a step; the first one starts the average."""
        if step == 0:
            self.state = ProjectedGuidance(SCALE, **self.options)
        return self.state(x, sigma, naive.cond(x, sigma), naive.uncond(x, sigma))


@contextmanager
def recording(transformer: torch.nn.Module) -> Iterator[list[dict[str, Any]]]:
    """The tensors among the arguments of every call of the transformer."""
    calls: list[dict[str, Any]] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({name: value.clone() for name, value in kwargs.items() if isinstance(value, Tensor)})

    hook = transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def naive_run(
    model: Model, pipe: Any, call: dict[str, Any], cfg: bool, velocity: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """The stock latents, and those of a loop with velocity(naive, step, sigma, x) that begins as the stock one does."""
    with recording(pipe.transformer) as calls:
        stock = pipe(**call).images
    calls = [{n: v if n.endswith("_ids") else v.double() for n, v in one.items()} for one in calls[:2]]
    cond, uncond = calls[0], calls[1] if cfg else None
    if cfg and model.sd3:
        uncond, cond = ({name: value.chunk(2)[i] for name, value in calls[0].items()} for i in range(2))
    start = cond.pop("hidden_states")
    naive = Naive(model, (cond, uncond))
    sigmas = pipe.scheduler.sigmas[pipe.scheduler.begin_index or 0 :]
    return stock, euler(functools.partial(velocity, naive), start, sigmas)
