"""What a run depends on, and what it finds: the contents of config.json and of a ledger's rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ...descriptions import Description
from ...pipelines.recipe import Environment
from .arms import Arm
from .sets import Item

SETS = "sets.jsonl"


class RunConfig(Description):
    """All that a run depends on; the same values give the same pictures and figures, byte for byte.

    `arms` are drawn for every set of `sets` (named as given, `sets_digest` is of their content). A set's seed is a hash
    of `seed` and its id. `threads` a process and `batch_size` matter: floating point depends on both. None is the
    model's own.
    """

    run: int = Field(1, ge=1, le=1)
    kind: Literal["style", "heads", "edit"] = "style"
    model: str
    sets: str
    sets_digest: str = ""
    arms: tuple[Arm, ...] = Field(min_length=1)
    baseline: str
    metrics: tuple[str, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)
    num_inference_steps: int | None = Field(None, gt=0, le=1000)
    height: int | None = Field(None, gt=0, le=16384)
    width: int | None = Field(None, gt=0, le=16384)
    guidance_scale: float | None = Field(None, ge=0.0, le=100.0)
    true_cfg_scale: float | None = Field(None, ge=0.0, le=100.0)
    negative_prompt: str | None = None
    batch_size: int = Field(8, ge=2, le=1024)
    threads: int = Field(1, ge=1, le=1024)
    weights: str | None = None
    environment: Environment | None = None

    @model_validator(mode="after")
    def _compares(self) -> RunConfig:
        names = [arm.name for arm in self.arms]
        if self.baseline not in names:
            raise ValueError(f"the run has no method {self.baseline!r} to compare with; it has {', '.join(names)}")
        return self

    def options(self, arm: Arm) -> dict[str, Any]:
        """The pipeline's arguments for an arm: its own stand before the run's."""
        names = ("num_inference_steps", "height", "width", "guidance_scale", "true_cfg_scale", "negative_prompt")
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**own, **arm.options}

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


class Row(Description):
    """One set drawn by one arm; `failed` says why there is nothing, `warned` what was odd.

    `seconds` to draw, `measuring` to save and measure; `peak_mib`: the GPU's peak, on a CPU the process's (begun anew
    where the system can). `pictures`: file below the run's folder to the SHA-256 of its bytes; `beside`: the same of
    what is shown with them, an edit's source and masks.
    """

    set: str
    arm: str
    seed: int
    seconds: float = 0.0
    measuring: float = 0.0
    peak_mib: float = 0.0
    pictures: dict[str, str] = Field({})
    beside: dict[str, str] = Field({})
    values: dict[str, float | None] = Field({})
    failed: str | None = None
    warned: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Arm and set."""
        return self.arm, self.set

    @property
    def files(self) -> dict[str, str]:
        """All of its files."""
        return {**self.pictures, **self.beside}


def seed_of(seed: int, name: str) -> int:
    """A set's own seed, from the run's: the same on any machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big")


def item_seed(seed: int, one: Item) -> int:
    """An item's seed: what its line says, or of the run's and its id."""
    return seed_of(seed, one.id) if one.seed is None else one.seed


def digest(sets: Sequence[Item]) -> str:
    """Of the sets' content, pictures included."""
    return hashlib.sha256(dumped(sets).encode()).hexdigest()[:16]


def dumped(sets: Sequence[Item]) -> str:
    """Sets as JSONL that stands alone: pictures are data URIs."""
    return "".join(one.model_dump_json(exclude_defaults=True) + "\n" for one in sets)


def picture_file(arm: Arm, one: str, number: int) -> str:
    """Where a picture lies, below the run's folder."""
    return str(Path("pictures") / arm.slug / f"{one}-{number}.png")
