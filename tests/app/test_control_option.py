"""`--control kind:setting=value,...`: every setting of every control, and one sentence for what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from test_command_line import call

from attnctrl import (
    NAG,
    AlignedStyle,
    ControlError,
    Drag,
    Falling,
    Recipe,
    Reference,
    Region,
    SoftPAG,
    Where,
    read_recipe,
)
from attnctrl.app.web.frame import _refuse_paths
from attnctrl.descriptions import alternatives
from attnctrl.registry import controls, parse_control
from attnctrl.written import split

FAST = ["--steps", "2", "--device", "cpu", "--model", "tiny-flux"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a picture, in a file.png"
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(path)
    return str(path)


# ---------------------------------------------------------------- every setting of every control


def texts(name: str, field: FieldInfo, picture: str) -> Iterator[tuple[str, str]]:
    """A value of a setting, other than its default, as users write it: (name, text), parts by dotted names."""
    kinds = list(alternatives(field.annotation))
    inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    if Image.Image in kinds:
        yield name, f'"{picture}"'
    elif inner is not None:
        for part, one in inner.model_fields.items():
            if (inner, part) in OTHERWISE:
                continue
            yield from texts(f"{name}.{part}", one, picture)
    elif str in kinds:
        usual = {"blocks": "0-3/2", "heads": "L0H1 L2H3", "steps": "0%-60%"}
        yield name, usual.get(name.split(".")[-1], '"blurry, dark (very), a=b"')
    elif bool in kinds:
        yield name, str(not field.default).lower()
    elif get_origin(kinds[0]) is Literal:
        yield name, str(next(value for value in get_args(kinds[0]) if value != field.default))
    elif get_origin(kinds[0]) is tuple:
        yield name, "L0H1:L2H3" if str in get_args(kinds[0]) else "2:3"
    else:
        taken = TypeAdapter(field.rebuild_annotation())
        yield name, next(text for text in ("0.75", "2", "3") if fits(taken, text) and float(text) != field.default)


def fits(taken: TypeAdapter[Any], text: str) -> bool:
    try:
        taken.validate_python(text)
    except ValidationError:
        return False
    return True


WHOLE = ("nag", "slg", "tpg")
"""Methods that act on whole blocks or over all heads."""
OTHERWISE = {(Region, "box"), (Region, "mask"), (Region, "joined"), (Region, "parts"), (Drag, "to")}
"""Settings that stand in the place of others."""


def unset(one: BaseModel, name: str = "") -> list[str]:
    """The settings, at any depth, that are as they are by default."""
    found = []
    for part, field in type(one).model_fields.items():
        value = getattr(one, part)
        if (type(one), part) in OTHERWISE:
            continue
        if isinstance(value, BaseModel):
            found += unset(value, f"{name}{part}.")
        elif part != "kind" and value == field.default:
            found.append(f"{name}{part}")
    return found


@pytest.mark.parametrize("kind", controls())
def test_every_setting_of_every_control_is_reached(kind, picture):
    cls = controls()[kind]
    fields = [(name, one) for name, one in cls.model_fields.items() if name != "kind" and (cls, name) not in OTHERWISE]
    given = dict(pair for name, field in fields for pair in texts(name, field, picture))
    if kind in WHOLE:
        del given["where.heads"]
    control = parse_control(f"{kind}:{', '.join(f'{name}={text}' for name, text in given.items())}")
    assert type(control) is cls
    assert unset(control) == (["where.heads"] if kind in WHOLE else [])
    recipe = Recipe(prompts=("a",), control=(control,))
    assert Recipe.model_validate_json(recipe.dump()) == recipe
    short = {name.removeprefix("where."): text for name, text in given.items()}
    assert parse_control(f"{kind}:{','.join(f'{name}={text}' for name, text in short.items())}") == control


READ = {
    "nag": NAG(),
    "nag:": NAG(),
    " nag : phi = 3 , tau=2 ": NAG(phi=3, tau=2),
    'nag:prompt="blurry, dark",phi=3': NAG(prompt="blurry, dark", phi=3),
    "nag:prompt='a, b',phi=3": NAG(prompt="a, b", phi=3),
    "nag:prompt=a dog's face, phi=3": NAG(prompt="a dog's face", phi=3),
    r'nag:prompt="say \"hi\", you"': NAG(prompt='say "hi", you'),
    "nag:prompt=a fox (red, big),phi=3": NAG(prompt="a fox (red, big)", phi=3),
    "nag:prompt=a:b=c": NAG(prompt="a:b=c"),
    "nag:prompt=5": NAG(prompt="5"),
    "nag:prompt=none": NAG(prompt="none"),
    "nag:prompt=": NAG(prompt=""),
    "nag:alpha=none": NAG(),
    "nag:norm=2": NAG(norm=2),
    "aligned:shift=0:1": AlignedStyle(shift=(0, 1)),
    "aligned:shift=[0, -1]": AlignedStyle(shift=(0, -1)),
    "aligned:blocks=0-4,steps=0%-40%": AlignedStyle(where=Where(blocks="0-4", steps="0%-40%")),
    "aligned:where=single": AlignedStyle(where=Where(blocks="single")),
    "aligned:where.steps=3": AlignedStyle(where=Where(blocks="late", steps="3")),
    "aligned:key_scale=0.5": AlignedStyle(key_scale=0.5),
    "aligned:key_scale.start=1.5": AlignedStyle(key_scale=Falling(start=1.5)),
    'aligned:key_scale={"power": 3}': AlignedStyle(key_scale=Falling(power=3)),
    "aligned:adain_keys=no": AlignedStyle(adain_keys=False),
    "softpag:u=0.5": SoftPAG(u=0.5),
    "softpag:heads=L1H1 L1H2,u=0.2:0.4": SoftPAG(where=Where(heads="L1H1 L1H2"), u=(0.2, 0.4)),
    'softpag:row_heads=["L1H0,L1H1", ""]': SoftPAG(row_heads=("L1H0,L1H1", "")),
    "softpag:row_heads=L1H0": SoftPAG(row_heads=("L1H0",)),
}


@pytest.mark.parametrize(("text", "control"), READ.items(), ids=list(READ))
def test_what_texts_mean(text, control):
    assert parse_control(text) == control


def test_references_by_name_number_and_json(picture):
    one = Reference(picture=picture)
    assert parse_control(f'aligned:reference="{picture}"') == AlignedStyle(reference=one)
    fox = AlignedStyle(reference=Reference(picture=picture, caption="a fox", mask=picture))
    assert parse_control(f'aligned:reference="{picture}",reference.caption=a fox,reference.mask="{picture}"') == fox
    two = AlignedStyle(reference=(one, Reference(picture=picture, strength=0.5)))
    numbered = f'reference.0="{picture}",reference.1.picture="{picture}",reference.1.strength=0.5'
    assert parse_control(f"aligned:{numbered}") == two
    assert (
        parse_control(f'aligned:reference=[{{"picture": "{picture}"}}, {{"picture": "{picture}", "strength": 0.5}}]')
        == two
    )


def test_split_keeps_what_is_quoted_or_in_brackets():
    assert split('a=1, b="x, y", c=[1, "2,]"], d=(e, f)') == ["a=1", 'b="x, y"', 'c=[1, "2,]"]', "d=(e, f)"]
    assert split("a=:-), b=it's") == ["a=:-)", "b=it's"]


def test_a_recipe_takes_no_texts_so_that_a_strangers_names_no_file(picture):
    body = {"prompts": ["a"], "control": [f"aligned:reference={picture}"]}
    _refuse_paths(body)
    with pytest.raises(ValidationError, match="described by its kind"):
        Recipe.model_validate(body)


# ---------------------------------------------------------------- what cannot be read

BAD = {
    "nagg": "did you mean nag? known: aligned",
    "": "there is no control ''; known: aligned",
    "nag:phy=3": "nag has no setting 'phy'; did you mean phi? it has strength, prompt, phi, tau, alpha, norm, blocks, heads, steps",
    "nag:kind=apg": "nag has no setting 'kind'",
    "nag:phi=0.5": "nag: phi: Input should be greater than or equal to 1; phi is a number from 1",
    "nag:phi=": "nag: phi: Input should be a valid number",
    "nag:phi=much": "phi: Input should be a valid number",
    "nag:phi=nan": "nag: phi: Input should be a finite number; phi is a number from 1",
    "nag:phi=true": "nag: phi: Input should be a valid number",
    "nag:phi=3,phi=4": "nag: phi is given twice",
    "nag:phi": "nag: cannot read 'phi'; write setting=value",
    "nag:prompt=blurry, dark": "nag: cannot read 'dark'; write setting=value, and a value with a comma in quotes",
    "nag:=3": "cannot read '=3'",
    'nag:prompt="x': "a quote is not closed",
    "nag:prompt=(x": "a bracket is not closed",
    "nag:phi.x=3": "nag: phi has no parts; write phi=value",
    "nag:norm=3": "nag: norm: Input should be 1 or 2; norm is 1 or 2",
    "nag:alpha=2": "alpha is a number from 0 to 1 or none",
    "nag:heads=H1": "heads cannot be chosen",
    "tpg:seed=1.5": "seed is a whole number from 0",
    "apg:momentum=1": "momentum is a number over -1 below 1",
    "aligned:shift=[0": "a bracket is not closed",
    "aligned:shift=[0;1]": "aligned: shift: [0;1] is no JSON; write [0, 1]",
    "aligned:shift=[true,1]": "aligned: shift: Input should not be true or false; shift is 2, each a whole number, by colon",
    "aligned:shift=1": "aligned: shift.1: Field required; shift is 2, each a whole number, by colon",
    "aligned:key_scale=inf": "key_scale: Input should be a finite number; key_scale is a number from 0 or Falling(start, end, power)",
    "aligned:key_scale.start=nan": "aligned: key_scale.start: Input should be a finite number",
    "aligned:key_scale.begin=1": "aligned: key_scale has no setting 'begin'; it has start, end, power",
    "aligned:adain_keys=maybe": "adain_keys is true or false",
    "aligned:blocks=99..": "aligned: where.blocks: cannot read '99..'",
    "aligned:where.block=3": "where has no setting 'block'; did you mean blocks?",
    "aligned:where.blocks=2,blocks=3": "aligned: blocks is given twice",
    "aligned:reference=no.png": "aligned: reference.picture: there is no picture at no.png",
    "aligned:reference.caption=a fox": "aligned needs reference.picture",
    "aligned:reference.1=a.png": "aligned: reference is numbered 1; number from 0 on",
    "aligned:reference=a.png,reference.picture=b.png": "say the same; give one of them",
    "freecus": "freecus needs reference: write reference=...",
    "slg:blocks=0-4/0": "'0-4/0' takes no step",
}


@pytest.mark.parametrize(("text", "words"), BAD.items(), ids=list(BAD))
def test_what_cannot_be_read_is_one_sentence(text, words):
    with pytest.raises(ControlError) as refused:
        parse_control(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- on the command line


def test_controls_compose_and_no_style_is_added(monkeypatch, tmp_path, capsys):
    words = [
        "generate",
        "a fox",
        "a car",
        *FAST,
        "--control",
        "nag:prompt=blurry,phi=4",
        "--control",
        "aligned:strength=0.5",
    ]
    assert call(monkeypatch, *words, "--out", str(tmp_path / "a")) == 0
    assert read_recipe(tmp_path / "a" / "recipe.json").control == (
        NAG(prompt="blurry", phi=4),
        AlignedStyle(strength=0.5),
    )
    assert call(monkeypatch, "run", str(tmp_path / "a" / "recipe.json"), "--out", str(tmp_path / "b")) == 0
    assert "2 of 2 pictures are identical" in capsys.readouterr().out
    alone = ["generate", "a fox", *FAST, "--control", "nag:prompt=blurry"]
    assert call(monkeypatch, *alone, "--out", str(tmp_path / "c")) == 0
    assert [one.kind for one in read_recipe(tmp_path / "c" / "recipe.json").control] == ["nag"]
    assert (
        call(monkeypatch, *alone, "a car", "--style", "naive", "--strength", "0.3", "--out", str(tmp_path / "d")) == 0
    )
    assert [(one.kind, one.strength) for one in read_recipe(tmp_path / "d" / "recipe.json").control] == [
        ("naive", 0.3),
        ("nag", 1.0),
    ]


LINES = {
    "a wrong value": (["--control", "nag:phi=0"], "nag: phi: Input should be greater than or equal to 1"),
    "an unknown control": (["--control", "nagg"], "did you mean nag?"),
    "one prompt": (["--control", "aligned"], "one prompt has nothing to share"),
    "strength of no style": (["--control", "nag", "--strength", "0.5"], "--strength is of a style, and there is none"),
    "blocks of no style": (["--control", "nag", "--blocks", "late"], "--blocks is of a style"),
    "steps of plain": (["--style", "plain", "--at-steps", "0-2"], "--at-steps is of a style"),
    "a reference of no style": (["--control", "nag", "--reference", "no.png"], "there is no picture at no.png"),
    "no style, but a control": (
        ["--style", "nag"],
        "choose aligned, freecus, naive, stylealigned, aligned-gentle, plain; --control nag has it",
    ),
    "no file": (["--load", "no.py"], "--load no.py: there is no such file"),
    "a folder": (["--load=."], "--load .: there is no such file"),
    "a file that fails": (["--load", "BROKEN"], "broken.py: ZeroDivisionError: division by zero (line 2)"),
}


@pytest.mark.parametrize(("words", "message"), LINES.values(), ids=list(LINES))
def test_bad_lines_cost_one_line_and_exit_code_2(words, message, monkeypatch, tmp_path, tmp_path_factory, capsys):
    monkeypatch.chdir(tmp_path)
    broken = tmp_path_factory.mktemp("files") / "broken.py"
    broken.write_text("x = 1\nx / 0\n")
    words = [str(broken) if word == "BROKEN" else word for word in words]
    assert call(monkeypatch, "generate", "a fox", *words, "--out", "set") == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["before", "after", "equals"])
def test_load_may_stand_anywhere(place, monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("print('mine is read')")
    path = str(tmp_path / "mine.py")
    lines = {
        "before": ["--load", path, "methods", "nag"],
        "after": ["methods", "nag", "--load", path],
        "equals": ["methods", f"--load={path}", "nag"],
    }
    assert call(monkeypatch, *lines[place]) == 0
    out = capsys.readouterr().out
    assert "mine is read" in out
    assert "phi = 5.0" in out


def test_load_needs_a_file(monkeypatch, capsys):
    assert call(monkeypatch, "methods", "--load") == 2
    assert "--load needs a FILE.py" in capsys.readouterr().err
