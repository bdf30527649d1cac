"""Head presets: sets of heads with what they were found for, by whom, and with which measured effect."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from ..descriptions import Description, explain
from ..embedded import MODELS
from ..errors import ControlError
from ..files import checked_file
from ..processors import SoftPAG
from ..where import Where, listed_heads
from .checks import check_where
from .facts import facts_of

if TYPE_CHECKING:
    from torch import nn

SHIPPED = Path(__file__).parent / "presets"
_SAMPLE = 64


class Measured(Description):
    """A measured effect on held-out prompts: means with 95% intervals (mean, low, high), paired over pictures."""

    objective: str
    pictures: int = Field(ge=1)
    plain: float
    guided: float
    difference: tuple[float, float, float]
    random_heads: tuple[float, float, float] | None = None
    """The mean difference of random sets of as many heads, interval over sets."""


class HeadPreset(Description):
    """Heads of one model, their u and w, where they come from, and what they do there.

    `architecture`, `blocks` and `heads_a_block` must fit the model; `weights` is a digest of its values, None for
    presets that were published for a named model.
    """

    preset: int = Field(1, ge=1, le=1)
    name: str
    model: str
    architecture: str
    blocks: int = Field(ge=1)
    heads_a_block: int = Field(ge=1)
    weights: str | None = None
    heads: str
    u: float = Field(0.5, ge=0.0, le=1.0)
    strength: float = Field(3.0, ge=0.0)
    source: str
    status: str
    effect: Measured | None = None

    def control(self, strength: float | None = None, u: float | None = None) -> SoftPAG:
        """The guidance by these heads, with another w or u if given."""
        return SoftPAG(
            where=Where(heads=self.heads),
            strength=self.strength if strength is None else strength,
            u=self.u if u is None else u,
        )

    def fits(self, model: dict[str, Any]) -> None:
        """Raise ControlError where what is known of a model is not what the preset was made for."""
        for part, has in model.items():
            if (wanted := getattr(self, part)) != has:
                text = f"the preset {self.name!r} is for {self.model} ({part} {wanted}); this model has {has}"
                raise ControlError(f"{text}; search its heads with `attnctrl heads search`")

    def check(self, pipe: Any) -> None:
        """Raise ControlError when the preset is for another model."""
        one = described(pipe, self.model)
        self.fits({part: one[part] for part in ("architecture", "blocks", "heads_a_block")})
        if self.weights is not None and self.weights != one["weights"]:
            raise ControlError(
                f"the preset {self.name!r} was found on {self.model}, and this model has other weights; "
                "use its heads by name, or search this model's"
            )


def described(pipe: Any, model: str) -> dict[str, Any]:
    """What a preset says of its model: architecture, blocks, heads a block, digest of the weights."""
    from ..processors.attaching import host_of

    sites = host_of(pipe).sites
    return {
        "model": model,
        "architecture": host_of(pipe).edge.name,
        "blocks": sites[-1].index + 1,
        "heads_a_block": sites[0].heads,
        "weights": weights_digest(pipe.transformer),
    }


def weights_digest(transformer: nn.Module) -> str:
    """16 hex digits of every tensor's name, shape and first and last 64 values; quick on 12 billion of them."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(transformer.state_dict().items()):
        flat = value.detach().flatten()
        ends = torch.cat([flat[:_SAMPLE], flat[-_SAMPLE:]]).to("cpu", torch.float32)
        digest.update(f"{name} {tuple(value.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


def read_preset(name: str | Path) -> HeadPreset:
    """A shipped preset by name (`flux-golden-hour`), or one from a JSON file; ControlError says what is wrong."""
    path = Path(name)
    if path.suffix != ".json":
        path = SHIPPED / f"{name}.json"
        if not path.exists():
            raise ControlError(f"there is no preset {str(name)!r}; shipped are {', '.join(shipped())}")
    try:
        return HeadPreset.model_validate_json(checked_file(path, "the preset").read_text(encoding="utf-8"))
    except ValidationError as fault:
        raise ControlError(f"{path}: {explain(fault)}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise ControlError(f"cannot read the preset {path}: {getattr(fault, 'strerror', 'no text file')}") from None


def shipped() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def write_preset(preset: HeadPreset, path: Path) -> Path:
    """Write a preset as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(preset.model_dump(exclude_none=True), indent=2) + "\n")
    return path


def preset_before(text: str, model: str, strength: float | None = None, u: float | None = None) -> None:
    """What can be said of heads before their model is loaded: ControlError for a preset that is not there, for one of
    another embedded model, and for numbers that it cannot have."""
    own = HeadPreset(
        name="own", heads=text, source="", status="", model=model, architecture="", blocks=1, heads_a_block=1
    )
    preset = own if listed_heads(text) else read_preset(text)
    given = {name: value for name, value in (("strength", strength), ("u", u)) if value is not None}
    control = HeadPreset.model_validate({**preset.model_dump(), **given}).control()
    if model in MODELS and text in shipped() and preset.model != model:
        raise ControlError(
            f"the preset {text!r} is for {preset.model}, and the model is {model}; choose another --model"
        )
    facts = facts_of(model)
    if facts is not None and preset is not own:
        preset.fits(
            {
                "architecture": facts.architecture,
                "blocks": facts.sites[-1].index + 1,
                "heads_a_block": facts.sites[0].heads,
            }
        )
    if facts is not None:
        check_where("--heads", control.where, facts)


def preset_of(text: str, model: str, pipe: Any, strength: float | None = None, u: float | None = None) -> HeadPreset:
    """A preset by name or file, checked against the model, or one made of heads that are written out."""
    if listed_heads(text):
        given = HeadPreset(name="own", heads=text, source="command line", status="unmeasured", **described(pipe, model))
    else:
        given = read_preset(text)
        given.check(pipe)
    update = {"strength": strength, "u": u}
    return HeadPreset.model_validate({**given.model_dump(), **{k: v for k, v in update.items() if v is not None}})
