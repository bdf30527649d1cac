"""What a long run is asked for, checked before torch and its model are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ..descriptions import Description
from ..errors import ControlError
from ..given import MOST_GUIDANCE, MOST_PIXELS, MOST_STEPS, texts
from ..pipelines.checks import check_memory, check_where
from ..pipelines.facts import facts_of, known_model
from ..where import Where
from .console import SEEDS, lines_of, numbers_of
from .options import DTYPES, size_of

DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "sdaa", "tpu", "xla")
PICTURES = 10_000_000
"""More than that no run has drawn."""


class Asked(Description):
    """The numbers of a run, within what any machine can do."""

    num_inference_steps: int | None = Field(None, gt=0, le=MOST_STEPS)
    height: int | None = Field(None, gt=0, le=MOST_PIXELS)
    width: int | None = Field(None, gt=0, le=MOST_PIXELS)
    batch_size: int = Field(8, ge=1, le=1024)
    threads: int = Field(1, ge=1, le=1024)
    seed: int = Field(0, ge=0, lt=2**63)
    rounds: int = Field(1, ge=1, le=10_000)
    top_k: int = Field(1, ge=1, le=10_000)
    random_sets: int = Field(0, ge=0, le=10_000)
    repeats: int = Field(1, ge=1, le=SEEDS)
    strength: float | None = Field(None, ge=0.0, le=1000.0)
    u: float | None = Field(None, ge=0.0, le=1.0)
    guidance_scale: float | None = Field(None, ge=0.0, le=MOST_GUIDANCE)
    true_cfg_scale: float | None = Field(None, ge=0.0, le=MOST_GUIDANCE)


class AskedHeads(Asked):
    """The same of a run that guides by heads: without any guidance there is nothing to see."""

    strength: float = Field(3.0, gt=0.0, le=1000.0)
    u: float = Field(1.0, gt=0.0, le=1.0)


def asked(
    model: str,
    size: str | None,
    *,
    kind: type[Asked] = Asked,
    objectives: Sequence[str] = (),
    prompts: Path | None = None,
    seeds: str | None = None,
    blocks: str = "all",
    words: Mapping[str, str | None] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str = "none",
    **numbers: Any,
) -> None:
    """Raise ControlError, or ValidationError, for what no run can be."""
    sides = size_of(size)
    wanted = kind(**numbers, **sides)
    known_model(model)
    for name, text in (words or {}).items():
        if text is not None:
            texts(name, text)
    loadable(device, dtype, offload)
    where = Where(blocks=blocks)
    if facts := facts_of(model):
        check_where("--blocks", where, facts)
        facts.check_guidance(wanted.true_cfg_scale)
        facts.check_size(wanted.height, wanted.width)
        check_memory(facts, wanted.batch_size, wanted.height, wanted.width)
    lines = lines_of(prompts) if prompts else ()
    if len(lines) * len(numbers_of(seeds) if seeds else (0,)) > PICTURES:
        raise ControlError(f"so many prompts and seeds are over {PICTURES} pictures; give fewer seeds")
    if objectives:
        from ..evals.objectives import check_objective

        for text in objectives:
            check_objective(text)


def loadable(device: str | None, dtype: str | None, offload: str) -> None:
    """Raise ControlError for --device, --dtype and --offload that are none."""
    kind, _, number = ("cpu" if device is None else device).partition(":")
    if kind not in DEVICES or (number and not number.isdecimal()):
        raise ControlError(f"there is no device {str(device)!r} here; cpu always works")
    if dtype is not None and dtype not in DTYPES:
        raise ControlError(f"--dtype {dtype} is unknown; choose {', '.join(DTYPES)}")
    if offload not in ("none", "model", "sequential"):
        raise ControlError(f"--offload {offload} is unknown; choose none, model or sequential")
    if device == "cpu" and offload != "none":
        raise ControlError(f"--offload {offload} moves weights between a GPU and the CPU; on the CPU leave it out")
