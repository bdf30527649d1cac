"""Numbers are finite, in range, and no bools, in whatever is described; and what was described before still loads."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError

import attnctrl
from attnctrl import APG, NAG, SEG, SLG, TPG, AlignedStyle, Falling, FreeCus, Observe, Recipe, Reference, SoftPAG, Where
from attnctrl.control import Control
from attnctrl.descriptions import Description, leaves
from attnctrl.evals.heads.drawing import DrawnRun
from attnctrl.evals.heads.search import SearchConfig
from attnctrl.evals.runs.config import RunConfig
from attnctrl.pipelines.presets import HeadPreset, read_preset, shipped
from attnctrl.pipelines.settings import ModelSettings

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")
GREY = Image.new("RGB", (16, 16))


def descriptions() -> list[type[BaseModel]]:
    """Every pydantic model of the package."""
    for one in walk_packages(attnctrl.__path__, "attnctrl."):
        if not one.name.endswith("__main__") and ".embedded.judg" not in one.name:
            import_module(one.name)
    found, new = [], [BaseModel]
    while new:
        new = [cls for one in new for cls in one.__subclasses__()]
        found += [cls for cls in new if cls.__module__.startswith("attnctrl.") and cls not in found]
    return sorted(found, key=lambda cls: cls.__qualname__)


def refusals(cls: type[BaseModel], name: str, value: object) -> set[str]:
    """The names of pydantic's faults with one setting."""
    try:
        cls.model_validate({name: value})
    except ValidationError as fault:
        return {one["type"] for one in fault.errors() if one["loc"][0] == name}
    return set()


def test_every_model_of_the_package_is_a_description():
    found = descriptions()
    assert {Recipe, Where, Falling, Reference, RunConfig, SearchConfig, ModelSettings, NAG, Control} <= set(found)
    assert [cls for cls in found if not issubclass(cls, Description)] == []


@pytest.mark.parametrize(
    "cls", [cls for cls in descriptions() if cls is not Description], ids=lambda cls: cls.__qualname__
)
def test_no_setting_of_any_description_takes_nan_infinity_or_a_bool_for_a_number(cls):
    for name, field in cls.model_fields.items():
        kinds = set(leaves(field.annotation))
        if float in kinds and dict not in kinds:
            for value in (NAN, INF, -INF, "nan"):
                assert refusals(cls, name, value), f"{name}={value}"
        if {int, float} & kinds and bool not in kinds:
            assert "truth" in refusals(cls, name, True), name
            assert "truth" in refusals(cls, name, (True, False)), name


OUT_OF_RANGE = [
    (AlignedStyle, {"key_scale": NAN}, "finite"),
    (AlignedStyle, {"key_scale": -1.0}, "greater than or equal to 0"),
    (AlignedStyle, {"text_scale": INF}, "finite"),
    (AlignedStyle, {"text_scale": -0.1}, "greater than or equal to 0"),
    (AlignedStyle, {"strength": INF}, "finite"),
    (AlignedStyle, {"shift": (0, True)}, "true or false"),
    (FreeCus, {"reference": {"picture": GREY, "strength": 0.0}}, "greater than 0"),
    (FreeCus, {"reference": {"picture": GREY}, "text_scale": -1.0}, "greater than or equal to 0"),
    (Falling, {"power": INF}, "finite"),
    (Falling, {"power": 0.0}, "greater than 0"),
    (Falling, {"start": -1.0}, "greater than or equal to 0"),
    (Falling, {"end": NAN}, "finite"),
    (Reference, {"picture": GREY, "seed": -1}, "greater than or equal to 0"),
    (Reference, {"picture": GREY, "seed": True}, "true or false"),
    (Reference, {"picture": GREY, "seed": 2**63}, "less than"),
    (SoftPAG, {"u": NAN}, "finite"),
    (SoftPAG, {"u": (0.5, 2.0)}, "u lies between"),
    (SEG, {"sigma": INF}, "finite"),
    (TPG, {"seed": -1}, "greater than or equal to 0"),
    (TPG, {"seed": 2**32}, "less than"),
    (SLG, {"strength": -1.5}, "greater than or equal to -1"),
    (NAG, {"phi": 0.9}, "greater than or equal to 1"),
    (NAG, {"tau": INF}, "finite"),
    (NAG, {"alpha": 1.1}, "less than or equal to 1"),
    (NAG, {"norm": True}, "true or false"),
    (APG, {"momentum": 1.0}, "less than 1"),
    (APG, {"norm_threshold": -1.0}, "greater than or equal to 0"),
    (APG, {"guidance_scale": -1.0}, "greater than or equal to 0"),
    (Observe, {"row": True}, "true or false"),
    (Where, {"blocks": "0-4/0"}, "takes no step"),
    (Where, {"blocks": "single:0-4/00"}, "takes no step"),
    (Where, {"blocks": True}, "got True"),
    (Where, {"steps": "0%-140%"}, "ends at 100%"),
    (Where, {"steps": (0.0, NAN)}, "cannot read"),
    (Where, {"steps": (0.0, 1.4)}, "ends at 100%"),
    (Recipe, {"prompts": ("a",), "guidance_scale": NAN}, "finite"),
    (Recipe, {"prompts": ("a",), "guidance_scale": -1.0}, "greater than or equal to 0"),
    (Recipe, {"prompts": ("a",), "true_cfg_scale": -1.0}, "greater than or equal to 0"),
    (Recipe, {"prompts": ("a",), "seed": True}, "true or false"),
    (Recipe, {"prompts": ("a",), "control": [{"kind": "aligned", "key_scale": NAN}]}, "finite"),
    (ModelSettings, {"guidance_scale": INF}, "finite"),
    (ModelSettings, {"true_cfg_scale": -1.0}, "greater than or equal to 0"),
    (SearchConfig, {"seeds": (0, -1)}, "greater than or equal to 0"),
    (DrawnRun, {"strength": INF}, "finite"),
    (RunConfig, {"guidance_scale": -1.0}, "greater than or equal to 0"),
    (HeadPreset, {"strength": INF}, "finite"),
    (HeadPreset, {"blocks": 0}, "greater than or equal to 1"),
]


@pytest.mark.parametrize(
    ("cls", "body", "words"), OUT_OF_RANGE, ids=[f"{c.__name__} {list(b.items())[-1]}"[:60] for c, b, _ in OUT_OF_RANGE]
)
def test_what_is_out_of_range_is_refused(cls, body, words):
    with pytest.raises(ValidationError, match=words):
        cls(**body)


@pytest.mark.parametrize(
    "text", ['"guidance_scale": NaN', '"seed": true', '"control": [{"kind": "nag", "phi": Infinity}]', '"height": true']
)
def test_the_same_in_json(text):
    with pytest.raises(ValidationError):
        Recipe.model_validate_json('{"prompts": ["a"], ' + text + "}")


def test_what_was_in_range_still_is():
    assert Where(blocks="0-4/2", steps="0%-100%").blocks == "0-4/2"
    assert SLG(strength=-1).strength == -1
    assert AlignedStyle(key_scale=0, text_scale=0).key_scale == 0
    assert Recipe(prompts=("a",), guidance_scale=0, seed=2**63 - 1).guidance_scale == 0


@pytest.mark.parametrize("name", shipped())
def test_presets_load(name):
    preset = read_preset(name)
    assert Recipe(prompts=("a",), control=(preset.control(),)).control[0].where.heads == preset.control().where.heads


@pytest.mark.parametrize("model", ["tiny-flux", "tiny-sd3"])
def test_stored_runs_and_settings_load_unchanged(model):
    body = json.loads((ROOT / "docs" / "runs" / model / "config.json").read_text())
    assert json.loads(RunConfig.model_validate(body).model_dump_json()) == body
    settings = json.loads((ROOT / "attnctrl/embedded/weights" / model / "attnctrl.json").read_text())
    assert ModelSettings.model_validate(settings).given() == settings
