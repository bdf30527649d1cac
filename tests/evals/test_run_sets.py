"""Sets and methods: read, named, swept, refused."""

from __future__ import annotations

import pytest
from PIL import Image
from run_fixtures import FEW
from runs import (
    SETS,
    begin,
    noise,
    pictures,
    settings,
)  # fmt: skip

from attnctrl import AlignedStyle, ControlError, Drag, FreeCus, NaiveSharing, Recipe, Reference, read_recipe
from attnctrl.evals.runs.arms import COPY, GROUPS, PLAIN, VARIANTS, arms
from attnctrl.evals.runs.config import picture_file, seed_of
from attnctrl.evals.runs.finished import read_run
from attnctrl.evals.runs.sets import StyleSet, read_sets, shipped, spread
from attnctrl.pipelines.generate import generate, pixel_hash
from attnctrl.registry import controls


def test_a_set_is_drawn_the_same_whatever_is_beside_it(drawer, whole, tmp_path):
    assert seed_of(0, "flat-icon-1") == 120181408430863, "the same on any machine and in any version"
    assert len({seed_of(seed, name) for seed in (0, 1) for name in "ab"}) == 4
    other = StyleSet(id="other", prompts=("a saw",))
    begin(tmp_path, drawer, (SETS[3], other, SETS[1]), methods=("plain",)).run()
    found = pictures(tmp_path)
    assert len(found) == 5
    for name in found:
        if "other" not in name:
            assert found[name] == whole[1][0][name]
    begin(tmp_path / "more", drawer, SETS[1:2], methods=("aligned,naive,plain",)).run()
    aligned = {name: body for name, body in pictures(tmp_path / "more").items() if "naive" not in name}
    assert len(aligned) == 4
    assert aligned.items() <= whole[1][0].items()


def test_a_picture_is_what_its_own_recipe_replays(drawer, tmp_path):
    (led,) = noise(32)
    sets = (FEW[0], StyleSet(id="led", prompts=("a bell", "a moon"), reference=led, caption="a wall"))
    begin(tmp_path, drawer, sets, methods=("plain,aligned:strength=0.5,naive,copy",), negative_prompt="a rag").run()
    for arm in read_run(tmp_path).config.arms:
        for one in sets:
            files = [tmp_path / picture_file(arm, one.id, i) for i in range(2)]
            recipe = read_recipe(files[0])
            assert read_recipe(files[1]) == recipe
            assert recipe.seed == seed_of(0, one.id)
            again = generate(drawer, recipe)
            assert again.recipe.same_as(recipe) == len(recipe.made)
            if arm.copies:
                assert [Image.open(file).tobytes() for file in files] == [
                    (again.pictures[0] if one is FEW[0] else led).tobytes()
                ] * 2
            else:
                assert [pixel_hash(Image.open(file)) for file in files] == [made.sha256 for made in again.recipe.made]


LINE = '{"id": "a", "prompts": ["a fox", "a key"]}'
LINES = {
    "no JSON": ("{oops", "is no JSON: Expecting property name"),
    "torn": (LINE[:-4], "is no JSON"),
    "no object": ("[1]", "a set is a JSON object"),
    "wrong key": ('{"id": "b", "prompt": ["a fox"]}', "prompt"),
    "no prompts": ('{"id": "b"}', "prompts: Field required"),
    "prompts as text": ('{"id": "b", "prompts": "a fox"}', "prompts"),
    "an empty list": ('{"id": "b", "prompts": []}', "prompts"),
    "an empty prompt": ('{"id": "b", "prompts": ["a fox", " "]}', "an empty prompt"),
    "a known id": ('{"id": "A", "prompts": ["a fox"]}', "the id 'A' is line 1's already"),
    "an id with a slash": ('{"id": "../b", "prompts": ["a fox"]}', "id"),
    "an empty id": ('{"id": "", "prompts": ["a fox"]}', "id"),
    "too few subjects": ('{"id": "b", "prompts": ["a fox", "b"], "subjects": ["a fox"]}', "1 subjects for 2 prompts"),
    "no such picture": ('{"id": "b", "prompts": ["a fox"], "reference": "no.png"}', "there is no picture at"),
    "no picture": ('{"id": "b", "prompts": ["a fox"], "reference": "sets.jsonl"}', "as a picture"),
    "a torn picture": ('{"id": "b", "prompts": ["a fox"], "reference": "data:image/png;base64,AAAA"}', "as a picture"),
    "a number as picture": (
        '{"id": "b", "prompts": ["a fox"], "reference": 5}',
        "a picture's path beside this file, or its data URI",
    ),
    "a caption alone": ('{"id": "b", "prompts": ["a fox"], "caption": "a wall"}', "a caption without a reference"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES.keys())
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "sets.jsonl"
    path.write_text(f"{LINE}\n\n{line}\n")
    with pytest.raises(ControlError) as fault:
        read_sets(path)
    assert f"{path}, line 3" in str(fault.value)
    assert message in str(fault.value)


def test_sets_are_read(tmp_path):
    path = tmp_path / "sets.jsonl"
    (led,) = noise(16)
    led.save(tmp_path / "wall.png")
    path.write_text(f'{LINE}\r\n\n{{"id": "b", "prompts": ["un œuf"], "reference": "wall.png", "caption": "a wall"}}')
    plain, with_picture = read_sets(path)
    assert (plain.followers, with_picture.followers) == (1, 1)
    assert with_picture.reference.tobytes() == led.tobytes()
    for name in shipped():
        assert len(read_sets(name)) == 100
    for body, message in (("", "holds no set"), ("\n", "holds no set"), (b"\xff\xfe", "it is no text file")):
        path.write_bytes(body) if isinstance(body, bytes) else path.write_text(body)
        with pytest.raises(ControlError, match=message):
            read_sets(path)
    with pytest.raises(
        ControlError, match=r"there are no sets 'embeded'; give a \.jsonl file, or embedded or published"
    ):
        read_sets("embeded")
    with pytest.raises(ControlError, match="No such file"):
        read_sets(tmp_path / "none.jsonl")


def test_sets_of_any_letters_can_be_read_back(drawer, tmp_path):
    odd = StyleSet(id="odd", prompts=("a fox\u2028ink", 'a "key"\\\n\x85', "雪 œ 🦊"), style="\u2029")
    begin(tmp_path, drawer, (odd,), methods=("plain",)).run()
    assert read_run(tmp_path).sets == {"odd": odd}


def test_some_sets_are_spread_evenly():
    sets = read_sets("embedded")
    assert spread(sets, None) == sets
    assert spread(sets, 100) == sets
    assert [sets.index(one) for one in spread(sets, 4)] == [0, 25, 50, 75]
    for count in (0, -1, 101):
        with pytest.raises(ControlError, match="there are 100 sets"):
            spread(sets, count)


WAITS = ("drag", "move-scene", "wordweights")
"""Methods that need a setting."""


def test_methods_by_name():
    plain, copy, aligned, paper, naive = arms(["plain,copy", "aligned", "alignedgen,naive"])
    assert (plain.control, plain.copies, copy.control, copy.copies) == ((), False, (), True)
    assert aligned.control == paper.control == (AlignedStyle(),)
    assert naive.control == (NaiveSharing(),)
    (one,) = arms(["aligned:strength=0.3;blocks=0-3;shift=[0,0];adain_keys=false"])
    control = AlignedStyle(strength=0.3, where={"blocks": "0-3"}, shift=(0, 0), adain_keys=False)
    assert one.control == (control,)
    assert one.name == "aligned strength=0.3 blocks=0-3 shift=[0,0] adain_keys=false"
    assert one.slug == "aligned-strength-0.3-blocks-0-3-shift-0-0-adain-keys-false"
    assert (one.series, one.swept["shift"]) == ("aligned", [0, 0])
    assert [arm.name for arm in arms(["plain,aligned,plain"])] == ["plain", "aligned"]
    for name in [*(kind for kind in controls() if kind not in WAITS), *VARIANTS, PLAIN, COPY]:
        assert [arm.name for arm in arms([name])] == [name]
    with pytest.raises(ControlError, match="say where the object goes"):
        arms(["drag"])
    assert arms(["drag:by=[0.25,0.0]"])[0].control == (Drag(by=(0.25, 0.0)),)


def test_variants_take_one_part_away():
    own = AlignedStyle()
    away = {
        "alignedgen-no-shiftpe": {"shift": (0, 0)},
        "alignedgen-no-adain": {"adain_queries": False, "adain_keys": False},
        "alignedgen-no-lambda": {"key_scale": 1.0},
        "alignedgen-every-block": {"where": own.where.model_copy(update={"blocks": "all"})},
    }
    assert {"alignedgen", *away} == set(VARIANTS)
    for name, changed in away.items():
        assert arms([name])[0].control == (own.model_copy(update=changed),)
        assert arms([name])[0].control != (own,)


def test_groups_and_sweeps():
    assert [arm.name for arm in arms(["published"])] == list(GROUPS["published"])
    assert [arm.name for arm in arms(["published,ablation"])] == list(
        dict.fromkeys(GROUPS["published"] + GROUPS["ablation"])
    )
    found = arms(["plain,aligned,naive,softpag"], ["strength=0.1,0.3", "shift=[0,1],[0,0]"])
    values = [(s, shift) for s in (0.1, 0.3) for shift in ((0, 1), (0, 0))]
    assert [arm.control[0] for arm in found[1:9]] == [
        cls(strength=s, shift=shift) for cls in (AlignedStyle, NaiveSharing) for s, shift in values
    ]
    assert found[0].control == ()
    assert [arm.control[0].strength for arm in found[9:]] == [0.1, 0.3], "heads have no shift"
    assert {arm.series for arm in found} == {"plain", "aligned", "naive", "softpag"}
    assert found[2].name == "aligned strength=0.1 shift=[0,0]"
    assert found[2].swept == {"strength": 0.1, "shift": [0, 0]}
    assert len({arm.slug for arm in found}) == len(found) == 11


def test_a_recipe_is_a_method(drawer, tmp_path):
    (led,) = noise(16)
    control = AlignedStyle(strength=0.4, reference=Reference(picture=led, caption="mine"))
    recipe = Recipe(prompts=("x", "y"), control=(control,), seed=9, guidance_scale=2.0, num_inference_steps=3, width=64)
    (tmp_path / "own one.json").write_text(recipe.dump())
    (arm,) = arms([str(tmp_path / "own one.json")])
    assert (arm.name, arm.slug, arm.control) == ("own one", "own-one", (control,))
    options = settings((arm,), num_inference_steps=5, height=32, width=32, negative_prompt="a rag").options(arm)
    assert options == {
        "num_inference_steps": 3, "guidance_scale": 2.0, "width": 64, "height": 32, "negative_prompt": "a rag",
    }  # fmt: skip
    (swept,) = arms([f"{tmp_path / 'own one.json'}:strength=0.7"])
    assert swept.control[0] == AlignedStyle(strength=0.7, reference=control.reference)


WRONG = {
    "a near name": (["alinged"], [], "no method is called 'alinged'; did you mean aligned?"),
    "a far name": (["zzz"], [], "choose plain, copy, aligned"),
    "none": ([" , "], [], "no method is given"),
    "unknown setting": (["aligned:stregth=1"], [], "aligned has no setting 'stregth'"),
    "a setting of none": (["plain:strength=1"], [], "plain has no setting 'strength'"),
    "no value": (["aligned:strength="], [], "cannot read the setting"),
    "no equals": (["aligned:strength"], [], "cannot read the setting"),
    "no number": (["aligned:strength=much"], [], "strength: Input should be a valid number"),
    "not finite": (["aligned:strength=NaN"], [], "strength"),
    "bad blocks": (["aligned:blocks=0-"], [], "cannot read '0-'"),
    "one folder": (
        ["aligned:shift=[0,1]", "aligned:shift=[0,-1]"],
        [],
        "would share a folder; give them different names",
    ),
    "swept twice": (["aligned"], ["strength=1,1"], "would share a folder"),
    "a sweep of nothing": (["aligned"], ["strength"], "write a setting and its values"),
    "a sweep of no value": (["aligned"], ["strength="], "write a setting and its values"),
    "a sweep of no method's": (["plain"], ["strength=1"], "none of the methods has a setting 'strength'"),
    "a bad swept value": (["aligned"], ["strength=1,-1"], "strength: Input should be greater"),
    "no such recipe": (["no.json"], [], "cannot read the recipe no.json"),
}


@pytest.mark.parametrize(("methods", "sweeps", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_methods_are_told(methods, sweeps, message):
    with pytest.raises(ControlError) as fault:
        arms(methods, sweeps)
    assert message in str(fault.value)


def test_blocks_that_a_model_lacks_are_told(drawer, tmp_path):
    for text in ("aligned:blocks=99", "softpag:heads=L1H9"):
        with pytest.raises(ControlError, match=f"{text.replace(':', ' ')}: .*has"):
            begin(tmp_path / "none", drawer, FEW, methods=(f"plain,{text}",))
    with pytest.raises(ControlError, match="60 is no multiple of"):
        begin(tmp_path / "none", drawer, FEW, width=60)
    assert not list(tmp_path.iterdir())


def test_a_sets_picture_leads_what_has_none_of_its_own():
    own, given = noise(16, 16)
    one = StyleSet(id="a", prompts=("a fox",), reference=given, caption="a wall")
    bare = StyleSet(id="b", prompts=("a fox", "a key"))
    aligned, freecus, heads = arms(["aligned:strength=0.5,freecus,softpag"])
    (led,) = aligned.on(one)
    assert (led.reference.picture.tobytes(), led.reference.caption) == (given.tobytes(), "a wall")
    assert led == aligned.control[0].model_copy(update={"reference": led.reference})
    (kept,) = freecus.on(one)
    pictures = [r.picture.tobytes() for r in kept.references()]
    assert (type(kept), pictures) == (FreeCus, [given.tobytes()])
    assert heads.on(one) == heads.control
    assert aligned.on(bare) == aligned.control
    mine = aligned.model_copy(update={"control": (AlignedStyle(reference=Reference(picture=own)),)})
    assert mine.on(one) == mine.control


def test_sets_that_a_method_cannot_draw_are_told(drawer, tmp_path):
    (led,) = noise(16)
    alone, pair = StyleSet(id="one", prompts=("a fox",)), FEW[0]
    led_one = StyleSet(id="led", prompts=("a fox",), reference=led)
    with pytest.raises(
        ControlError, match="freecus keeps the subject of a picture, and the set 'ink-1' has no reference"
    ):
        begin(tmp_path / "none", drawer, (led_one, pair), methods=("freecus",))
    for name in ("aligned", "copy"):
        with pytest.raises(ControlError, match=f"the set 'one' has one prompt and no reference.* under {name}"):
            begin(tmp_path / "none", drawer, (pair, alone), methods=(name,))
    assert not (tmp_path / "none").exists()
    own = AlignedStyle(reference=Reference(picture=led))
    for arm in [
        *arms(["plain,softpag,aligned:strength=0"]),
        arms(["aligned"])[0].model_copy(update={"control": (own,)}),
    ]:
        arm.check(alone)
    for arm in arms(["freecus,aligned,copy"]):
        arm.check(led_one)
    rows = begin(tmp_path / "led", drawer, (led_one,), methods=("freecus,aligned,copy",)).run()
    assert not any(row.failed for row in rows.values())
