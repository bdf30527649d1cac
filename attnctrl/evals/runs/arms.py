"""Arms: the methods that a run compares, by name, by recipe, with settings, or swept over values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from PIL import Image
from pydantic import Field, ValidationError, model_validator

from ...control import Control
from ...descriptions import Description, explain
from ...errors import ControlError
from ...layout import Site
from ...pipelines.checks import steps_come
from ...pipelines.recipe import AnyControl, EditRecipe, read_recipe
from ...processors import SharingControl
from ...reference import Reference
from ...registry import control_class, control_of, controls, presets
from ...written import split
from .sets import StyleSet

PLAIN, COPY, INPAINT = "plain", "copy", "inpaint"
EDITING = "editing"
"""The group of all methods of edits."""
VARIANTS = MappingProxyType(
    {
        "alignedgen": "aligned",
        "alignedgen-no-shiftpe": "aligned:shift=[0,0]",
        "alignedgen-no-adain": "aligned:adain_queries=false;adain_keys=false",
        "alignedgen-no-lambda": "aligned:key_scale=1.0",
        "alignedgen-every-block": "aligned:blocks=all",
    }
)
"""Names for settings: the paper's own name, and AlignedGen with one part taken away."""
GROUPS = MappingProxyType(
    {
        "published": (PLAIN, "naive", "stylealigned", "alignedgen"),
        "ablation": (PLAIN, *VARIANTS),
    }
)
_WHERE = ("blocks", "heads", "steps")
_GIVEN = ("kind", "reference", "where")
_OPTIONS = ("negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "true_cfg_scale")
_STANDIN = Reference(picture=Image.new("RGB", (8, 8)), caption="the set's reference")


class EditWay(Description):
    """How an arm edits: `keep` the source's latents outside of the region, and where the region comes from.

    region: "set" is the edit's own, its words found by attention from `threshold` on (None: the usual one); "judged" is
    what the embedded judge outlines, and the set's own where there is no truth; "everywhere" is none.
    """

    keep: bool = False
    region: Literal["set", "judged", "everywhere"] = "set"
    threshold: float | None = Field(None, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _fits(self) -> EditWay:
        if self.threshold is not None and self.region != "set":
            raise ValueError(f"a threshold is of words that are found by attention, and the region is {self.region}")
        if self.keep and self.region == "everywhere":
            raise ValueError("keep keeps what lies outside of a region, and the region is everywhere")
        return self


class Arm(Description):
    """One method of a run: its controls, what it changes of the pipeline's call, and its place in a sweep.

    `copies`: the leader's picture (the source, of edits) stands for every picture, the baseline that no method may lose
    to nor be. `edits`: how it edits, in a run of edits. `series` is the name without its swept values; `swept` are
    these.
    """

    name: str
    control: tuple[AnyControl, ...] = ()
    options: dict[str, Any] = Field({})
    copies: bool = False
    edits: EditWay | None = Field(None, exclude_if=lambda value: value is None)
    series: str = ""
    swept: dict[str, Any] = Field({})

    @property
    def slug(self) -> str:
        """A folder's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")

    @property
    def sharing(self) -> list[SharingControl]:
        """The controls that make pictures follow a leader."""
        return [control for control in self.control if isinstance(control, SharingControl)]

    def on(self, one: StyleSet) -> tuple[Control, ...]:
        """The controls for a set: its reference picture leads where the arm brings none of its own."""
        if one.reference is None:
            return self.control
        given = Reference(picture=one.reference, caption=one.caption)
        return tuple(
            type(control)(**{**dict(control), "reference": given})
            if isinstance(control, SharingControl) and _open(control)
            else control
            for control in self.control
        )

    def check_model(self, sites: Sequence[Site], steps: int | None = None) -> None:
        """Raise ControlError for blocks and heads that a model does not have, and steps beyond a run of so many."""
        steps = self.options.get("num_inference_steps", steps)
        for control in self.control:
            try:
                control.where.select(sites)
                if not control.off:
                    steps_come(control.kind, control.where, steps)
            except ControlError as fault:
                raise ControlError(f"{self.name}: {fault}") from None

    def check(self, one: StyleSet) -> None:
        """Raise ControlError for a set that this arm cannot draw."""
        if one.reference is None and any(_waits(control) for control in self.sharing):
            raise ControlError(f"{self.name} keeps the subject of a picture, and the set {one.id!r} has no reference")
        alone = one.reference is None and len(one.prompts) < 2
        if alone and (self.copies or any(_open(control) and not control.off for control in self.sharing)):
            raise ControlError(
                f"the set {one.id!r} has one prompt and no reference, so that nothing follows under {self.name}; "
                "add prompts or a reference"
            )


def _open(control: SharingControl) -> bool:
    return control.reference is None or _waits(control)


def _waits(control: SharingControl) -> bool:
    return isinstance(control.reference, Reference) and control.reference.caption == _STANDIN.caption


def arms(methods: Sequence[str], sweeps: Sequence[str] = (), edits: bool = False) -> tuple[Arm, ...]:
    """The arms that texts name, in order.

    A method is `plain`, `copy`, a control's kind or a VARIANT, a group (GROUPS) or a recipe's file; each may have
    settings: `aligned:strength=0.3;blocks=0-3`. A sweep, `strength=0.1,0.3,1`, takes the place of every arm that has
    that setting by one arm a value; several sweeps make all combinations. With `edits`, of a run of edits: `inpaint` is
    a method too, EditWay's fields are settings, the group is `editing`. Raises ControlError.
    """
    groups = {EDITING: (PLAIN, INPAINT, *_ready())} if edits else GROUPS
    texts = [text for part in methods for text in split(part)]
    texts = [one for text in texts for one in groups.get(text, (text,))]
    if not texts:
        raise ControlError(f"no method is given; name some of {', '.join(_names(edits))}, or a recipe.json")
    found: dict[str, Arm] = {}
    for arm in _swept([_arm(text, edits) for text in dict.fromkeys(texts)], sweeps):
        slugs = {one.slug: one.name for one in found.values()}
        if arm.slug in slugs:
            raise ControlError(f"{arm.name!r} and {slugs[arm.slug]!r} would share a folder; give them different names")
        found[arm.name] = arm
    return tuple(found.values())


def _arm(text: str, edits: bool) -> Arm:
    name, _, settings = text.partition(":")
    if name in ((EDITING,) if edits else GROUPS):
        raise ControlError(f"{name} is a group of methods and takes no settings; give them to one method")
    values = dict(_setting(part) for part in split(settings, ";"))
    if name.endswith((".json", ".png")):
        recipe = read_recipe(name)
        if isinstance(recipe, EditRecipe):
            raise ControlError(f"{name} is a recipe of edits; give the recipe of a set")
        options = {key: value for key, value in recipe.arguments().items() if key in _OPTIONS}
        base = Arm(name=Path(name).stem, control=recipe.control, options=options)
    elif name in (PLAIN, COPY):
        base = Arm(name=name, copies=name == COPY)
    elif name == INPAINT and edits:
        base = Arm(name=name, edits=EditWay(keep=True))
    elif name in VARIANTS and not edits:
        kind, _, own = VARIANTS[name].partition(":")
        base = Arm(name=name, control=_controls([_described(kind, dict(_setting(p) for p in split(own, ";")))]))
    elif name in controls() or name in presets():
        bare = name not in controls("editing") or name in _ready()
        base = Arm(name=name, control=_controls([_described(name, {} if bare else values)]))
    else:
        near = get_close_matches(name, [*_names(edits), *((EDITING,) if edits else GROUPS)], n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(_names(edits))}, or give a recipe's file"
        raise ControlError(f"no method is called {name!r}; {hint}")
    if edits and base.edits is None:
        base = base.model_copy(update={"edits": EditWay()})
    for key, value in values.items():
        changed = _with(base, key, value)
        if changed is None:
            raise ControlError(f"{base.name} has no setting {key!r}")
        base = changed
    full = base.name if not values else f"{base.name} {' '.join(f'{k}={_shown(v)}' for k, v in values.items())}"
    return base.model_copy(update={"name": full, "series": base.name, "swept": values})


def _swept(found: Iterable[Arm], sweeps: Sequence[str]) -> list[Arm]:
    result = list(found)
    for sweep in sweeps:
        key, equals, texts = sweep.partition("=")
        values = [_setting(f"{key}={text}")[1] for text in split(texts)]
        if not equals or not values:
            raise ControlError(f"--sweep {sweep}: write a setting and its values, such as strength=0.1,0.3,1")
        if not any(_has(arm, key) for arm in result):
            raise ControlError(f"--sweep {sweep}: none of the methods has a setting {key!r}")
        result = [one for arm in result for one in (_over(arm, key, values) if _has(arm, key) else [arm])]
    return result


def _over(arm: Arm, key: str, values: Sequence[Any]) -> list[Arm]:
    every = []
    for value in values:
        one = _with(arm, key, value)
        assert one is not None
        name = f"{arm.name} {key}={_shown(value)}"
        every.append(one.model_copy(update={"name": name, "swept": {**arm.swept, key: value}}))
    return every


def _has(arm: Arm, key: str) -> bool:
    if arm.edits is not None and key in EditWay.model_fields:
        return bool(arm.control) or (arm.edits.keep and key != "keep")
    return bool(arm.control) and (key in _WHERE or any(key in type(c).model_fields for c in arm.control))


def _with(arm: Arm, key: str, value: Any) -> Arm | None:
    """The arm with another setting, in every control that has it; None where none has."""
    if not _has(arm, key):
        return None
    if key in _GIVEN:
        raise ControlError(f"{key} cannot be set in a method's text; the sets bring references, or write a recipe")
    if arm.edits is not None and key in EditWay.model_fields:
        try:
            return arm.model_copy(update={"edits": EditWay.model_validate({**dict(arm.edits), key: value})})
        except ValidationError as fault:
            raise ControlError(f"a method's settings: {explain(fault)}") from None
    changed = []
    for control in arm.control:
        body = control.model_dump()
        if key in _WHERE:
            body["where"] = {**body["where"], key: value}
        elif key in body:
            body[key] = value
        if "reference" in body:
            body["reference"] = getattr(control, "reference")  # noqa: B009
        changed.append(body)
    return arm.model_copy(update={"control": _controls(changed)})


def _described(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"kind": kind, **{k: v for k, v in values.items() if k not in _WHERE}}
    if where := {k: v for k, v in values.items() if k in _WHERE}:
        body["where"] = where
    field = control_class(kind).model_fields.get("reference")
    if field is not None and field.is_required():
        body["reference"] = _STANDIN
    return body


def _controls(bodies: Sequence[dict[str, Any]]) -> tuple[Control, ...]:
    try:
        return tuple(control_of(body) for body in bodies)
    except ValidationError as fault:
        raise ControlError(f"a method's settings: {explain(fault)}") from None


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise ControlError(f"cannot read the setting {text!r}; write name=value, such as strength=0.3")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _names(edits: bool) -> list[str]:
    return [PLAIN, COPY, INPAINT, *controls()] if edits else [PLAIN, COPY, *controls(), *presets(), *VARIANTS]


def _ready() -> list[str]:
    """Editing methods that need no setting."""
    found = []
    for kind in controls("editing"):
        try:
            control_of({"kind": kind})
        except ValidationError:
            continue
        found.append(kind)
    return found
