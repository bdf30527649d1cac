"""The registry: one kind, one class; and a rehearsal, a method in one file outside the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from test_command_line import call

from attnctrl import (
    APG,
    NAG,
    AlignedStyle,
    Control,
    ControlError,
    Recipe,
    register,
)
from attnctrl.effect import Effect
from attnctrl.processors import SharingControl
from attnctrl.registry import control_class, control_of, controls, controls_of, described

ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).parents[1] / "outside" / "ablate.py"


# ---------------------------------------------------------------- what is known


def test_methods_are_found_by_family_and_name():
    assert list(controls()) == [*controls("sharing"), *controls("editing"), *controls("guidance"), *controls("other")]
    assert list(controls("sharing")) == ["aligned", "freecus", "naive", "stylealigned"]
    assert list(controls("guidance")) == ["apg", "nag", "pag", "seg", "slg", "softpag", "tpg"]
    for kind, cls in controls().items():
        assert cls.model_fields["kind"].default == kind
        assert control_class(kind) is cls


def test_every_method_and_setting_says_what_it_is():
    for kind, one in described().items():
        assert one["title"], kind
        assert one["source"], kind
        assert one["says"].endswith("."), kind
        for name, setting in one["settings"].items():
            assert setting["says"], f"{kind}: {name}"
            assert setting["takes"], f"{kind}: {name}"
    assert described()["nag"]["settings"]["alpha"]["takes"] == "a number from 0 to 1 or none"
    assert described()["freecus"]["settings"]["reference"]["default"] is None


def test_the_registry_itself_needs_no_torch():
    code = "import sys, attnctrl.registry; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("wanted", "hint"), [("nagg", "did you mean nag?"), ("zzz", "there is no control 'zzz'; known: aligned")]
)
def test_an_unknown_kind_is_told_what_is_known(wanted, hint):
    with pytest.raises(ControlError) as refused:
        control_class(wanted)
    assert hint in str(refused.value)
    assert "a control of your own is loaded with --load FILE.py" in str(refused.value)


# ---------------------------------------------------------------- registering


def mine(name: str = "Mine", base: type = Control, **body):
    """A control class made here, not yet registered."""
    body = {"__module__": __name__, "__annotations__": {}, "plan": lambda self, call: Effect(), **body}
    if "kind" in body:
        body["__annotations__"] = {"kind": Literal[body["kind"]], **body["__annotations__"]}
    return type(name, (base,), body)


def test_register_returns_the_class_and_makes_it_known(table):
    cls = mine(kind="mine")
    assert register(cls) is cls
    assert controls("other") == {"mine": cls}
    assert Recipe(prompts=("a",), control=({"kind": "mine", "strength": 0.5},)).control == (cls(strength=0.5),)


def test_one_kind_is_one_class(table):
    with pytest.raises(
        ControlError, match=r"two controls are called 'nag': NAG in .*nag\.py and Other in .*; rename yours"
    ):
        register(mine("Other", kind="nag"))
    assert control_class("nag") is NAG


def test_a_class_made_anew_takes_its_own_place(table):
    old, new = register(mine(kind="mine")), register(mine(kind="mine"))
    assert control_class("mine") is new
    assert control_of(old()) == old(), "what was made of the earlier one still goes into recipes"


NO_CONTROL, NO_KIND = (
    "is no control that can be planned; subclass Control",
    "has no kind of its own; write kind: Literal",
)
UNREGISTERED = {
    "no control": (lambda: int, NO_CONTROL),
    "abstract": (lambda: SharingControl, NO_KIND),
    "abstract, with a kind": (lambda: mine(kind="mine", plan=Control.plan), NO_CONTROL),
    "upper case": (lambda: mine(kind="Mine"), NO_KIND),
    "a colon": (lambda: mine(kind="a:b"), NO_KIND),
    "plain": (lambda: mine(kind="plain"), NO_KIND),
    "copy": (lambda: mine(kind="copy"), NO_KIND),
    "its base's kind": (lambda: mine("Nag2", NAG), "two controls are called 'nag'"),
    "no literal kind": (lambda: mine(__annotations__={"kind": str}, kind="mine"), NO_KIND),
    "family": (
        lambda: mine(kind="mine", family="mine"),
        "is of the family 'mine'; choose sharing, editing, guidance, other",
    ),
}


@pytest.mark.parametrize(("make", "words"), UNREGISTERED.values(), ids=list(UNREGISTERED))
def test_what_cannot_be_registered(make, words, table):
    before = controls()
    with pytest.raises(ControlError, match=words):
        register(make())
    assert controls() == before


def test_controls_of_takes_controls_classes_texts_and_lists():
    assert controls_of(None) == controls_of([]) == ()
    assert controls_of(NAG) == controls_of(NAG()) == controls_of("nag") == controls_of(["nag"]) == (NAG(),)
    assert controls_of(["nag:phi=3", APG, AlignedStyle()]) == (NAG(phi=3), APG(), AlignedStyle())


@pytest.mark.parametrize("value", [5, True, {"kind": "nag"}, b"nag", b"", ["nag", None], int])
def test_controls_of_refuses_anything_else_in_one_sentence(value):
    with pytest.raises(
        ControlError, match="is no control; give a control, its class, a text such as 'nag:prompt=blurry'"
    ):
        controls_of(value)


def test_controls_of_says_what_a_class_needs():
    with pytest.raises(ControlError, match="freecus needs reference"):
        controls_of(control_class("freecus"))


# ---------------------------------------------------------------- recipes


def test_a_recipe_writes_every_setting_of_any_control(table):
    cls = register(mine(kind="mine", __annotations__={"depth": int}, depth=3))
    recipe = Recipe(prompts=("a",), control=(cls(depth=7), NAG(phi=3)))
    assert '"depth": 7' in recipe.dump()
    assert '"phi": 3.0' in recipe.dump()
    assert Recipe.model_validate_json(recipe.dump()) == recipe


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"kind": "x"}, "control.0.*there is no control 'x'"), ("nag:phi=3", "described by its kind"), ({"phi": 3}, "described by its kind"),
     ({"kind": 3}, "described by its kind"), ({"kind": "nag", "phi": 0}, r"control\.0\.phi"), ({"kind": "nag", "phy": 3}, r"control\.0\.phy"),
     (mine(kind="strange")(), "Mine is not registered")],
)  # fmt: skip
def test_what_a_recipe_refuses(entry, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        Recipe.model_validate({"prompts": ["a"], "control": [entry]})


# ---------------------------------------------------------------- lists that follow


def test_lists_follow_from_the_registry(table, monkeypatch, capsys):
    from attnctrl.app.options import style_of
    from attnctrl.app.web.api import styles
    from attnctrl.app.web.tabs.evaluate import methods_offered
    from attnctrl.evals.runs.arms import arms

    cls = register(mine("Ours", SharingControl, kind="ours", title="Our sharing"))
    assert "ours" in styles()
    assert methods_offered()["Our sharing"] == "ours"
    assert "freecus" not in styles(), "which waits for a picture"
    assert style_of("ours", 0.5, None, None, ()) == (cls(strength=0.5),)
    assert arms(["ours:strength=0.3"])[0].control == (cls(strength=0.3),)
    assert [arm.control for arm in arms(['nag:prompt="a, b";phi=3,ours'])] == [(NAG(prompt="a, b", phi=3),), (cls(),)]
    assert call(monkeypatch, "methods", "ours") == 0
    assert "adain_queries = true" in capsys.readouterr().out


def test_the_page_of_the_methods_is_current(monkeypatch, capsys):
    assert call(monkeypatch, "methods", "--markdown") == 0
    page = (ROOT / "docs" / "methods.md").read_text()
    assert capsys.readouterr().out == page, "attnctrl methods --markdown > docs/methods.md"
