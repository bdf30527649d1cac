"""What the style tab opens on, and presets that come back from a recipe."""

from __future__ import annotations

import pytest
from served import framed
from test_app_input import set_values

from attnctrl import AlignedStyle, Recipe, Where
from attnctrl.app.web.app import app
from attnctrl.app.web.tabs import style_set
from attnctrl.embedded import MODELS
from attnctrl.registry import control_of


@pytest.fixture(scope="module")
def frame():
    with framed(["tiny-sd3"]) as found:
        yield found


def test_the_page_opens_on_what_looks_best():
    """tiny-sd3 and the gentle preset: agreement without a subject lost (docs/style-sets.md)."""
    page, found = app(MODELS, device="cpu")
    found.store.close()
    held = [block for block in page.blocks.values() if hasattr(block, "value")]
    shown = {block.label: block.value for block in reversed(held)}
    assert shown["Model"] == "tiny-sd3"
    assert (shown["Method"], shown["Strength"]) == style_set.PRESETS[shown["Preset"]] == ("aligned-gentle", 1.0)


def test_every_preset_of_the_tab_is_one_that_it_can_ask_for():
    for method, strength in style_set.PRESETS.values():
        values = set_values(method=method)
        values[6] = strength
        assert style_set.asked(values)[1].control == (control_of({"kind": method, "strength": strength}),)


@pytest.mark.parametrize(("given", "blocks"), [({}, None), ({"blocks": "2-3"}, "2-3")])
def test_a_preset_comes_back_from_its_recipe(given, blocks, frame, tmp_path):
    _, recipe = style_set.asked(set_values(method="aligned-gentle", **given))
    (tmp_path / "recipe.json").write_text(recipe.dump())
    *found, said = style_set.restored(frame, str(tmp_path / "recipe.json"))
    assert found[5] == "aligned-gentle"
    assert blocks in found
    assert "does not show" not in said
    assert style_set.asked(found)[1].control == recipe.control


def test_settings_that_the_tab_does_not_have_are_said(frame, tmp_path):
    recipe = Recipe(prompts=("a fox", "a key"), control=(AlignedStyle(key_scale=1.0, where=Where(blocks="all")),))
    (tmp_path / "recipe.json").write_text(recipe.dump())
    assert (
        "settings of aligned, which this tab does not show"
        in style_set.restored(frame, str(tmp_path / "recipe.json"))[-1]
    )
