"""Presets of methods: settings under a name of their own, wherever a kind may stand."""

from __future__ import annotations

import pytest
from test_command_line import call
from test_registry import mine

from attnctrl import AlignedStyle, ControlError, Recipe, Where, register
from attnctrl.control import Preset
from attnctrl.processors import SharingControl
from attnctrl.registry import control_class, control_of, controls_of, described, preset_named, presets

GENTLE = AlignedStyle(adain_queries=False, adain_keys=False, where=Where(blocks="last"))


def test_a_preset_is_its_settings_wherever_a_kind_may_stand(monkeypatch, capsys):
    from attnctrl.app.options import style_of
    from attnctrl.app.web.api import styles
    from attnctrl.app.web.tabs.evaluate import methods_offered
    from attnctrl.evals.runs.arms import arms

    assert list(presets()) == ["aligned-gentle"]
    assert controls_of("aligned-gentle") == (GENTLE,) == style_of("aligned-gentle", None, None, None, ())
    assert Recipe(prompts=("a",), control=({"kind": "aligned-gentle"},)).control == (GENTLE,)
    assert arms(["aligned-gentle"])[0].control == (GENTLE,)
    assert "aligned-gentle" in styles()
    assert methods_offered()["AlignedGen, gentle"] == "aligned-gentle"
    assert described()["aligned"]["presets"]["aligned-gentle"]["title"] == "AlignedGen, gentle"
    assert call(monkeypatch, "methods", "aligned-gentle") == 0
    assert "aligned-gentle  AlignedGen without AdaIN" in capsys.readouterr().out


def test_what_is_given_goes_before_the_preset():
    quick = GENTLE.model_copy(update={"strength": 0.5, "where": Where(blocks="last", steps="0%-40%")})
    assert controls_of("aligned-gentle:strength=0.5,steps=0%-40%") == (quick,)
    assert control_of({"kind": "aligned-gentle", "strength": 0.5, "where": {"steps": "0%-40%"}}) == quick
    assert controls_of("aligned-gentle:adain_keys=true")[0].adain_keys
    assert control_of({"kind": "aligned-gentle", "where": Where(blocks="1")}).where == Where(blocks="1")


def test_a_recipe_writes_the_settings_and_not_the_name():
    """A preset that changes later leaves a recipe as it was."""
    text = Recipe(prompts=("a",), control=controls_of("aligned-gentle")).dump()
    assert '"kind": "aligned"' in text
    assert "gentle" not in text
    assert Recipe.model_validate_json(text).control == (GENTLE,)


def test_a_control_is_known_as_the_preset_that_it_is():
    moved = GENTLE.model_copy(update={"strength": 0.3, "where": Where(blocks="0")})
    assert preset_named(GENTLE) == preset_named(moved) == "aligned-gentle"
    assert preset_named(AlignedStyle()) == preset_named(GENTLE.model_copy(update={"key_scale": 1.0})) == "aligned"


def test_one_name_is_one_thing(table):
    taken = {"aligned": "another kind's", "plain": "reserved", "aligned-gentle": "another preset's", "A b": "no name"}
    for name in taken:
        cls = mine("Ours", SharingControl, kind="ours", presets={name: Preset("Ours", "Ours.", {})})
        with pytest.raises(ControlError, match=f"Ours: '{name}' cannot be a name, or is another's; rename yours"):
            register(cls)
    with pytest.raises(ControlError, match="'aligned-gentle' cannot be a name"):
        register(mine(kind="aligned-gentle"))
    mild = Preset("Ours, mild", "Ours at half strength.", {"strength": 0.5})
    cls = register(mine("Ours", SharingControl, kind="ours", presets={"mild": mild}))
    assert controls_of("mild") == (cls(strength=0.5),)
    assert control_class("mild") is cls


def test_an_unknown_name_is_told_of_presets():
    with pytest.raises(ControlError, match="did you mean aligned-gentle"):
        controls_of("aligned-gentl")
