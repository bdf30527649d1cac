"""`observe`: beside other controls, what is kept and shown, the command, and what it refuses."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from matrix import shrink
from PIL import Image
from test_observing import MODELS, models, options
from tiny import tiny_flux, tiny_sd3

from attnctrl import (
    NAG,
    PAG,
    AlignedStyle,
    ControlError,
    FreeCus,
    NoEffectWarning,
    Observe,
    Reference,
    Where,
    attached,
    load,
    observe,
)
from attnctrl.app.attention_cli import attention
from attnctrl.effect import Effect
from attnctrl.pipelines.overlays import coloured, overlaid
from attnctrl.processors.observing import STATISTICS

# ---------------------------------------------------------------- with other controls

GOLD = Reference(picture=Image.new("RGB", (64, 48), "gold"), caption="a coin")
OTHERS = (PAG(where=Where(blocks="1")), NAG(prompt="an owl"), AlignedStyle(reference=GOLD))


def test_words_of_the_prompt_as_a_control_amends_it(pipe):
    found = observe(pipe, "a fox", control=FreeCus(reference=GOLD), **options("FLUX", False))
    assert found.words == ("fox", "coin")


@pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("control", OTHERS, ids=lambda c: c.kind)
@models
def test_the_picture_s_own_row_beside_added_rows_and_second_passes(model, control, guided):
    """Block 0 of step 0 sees the same with and without; a run with the control is bit-equal to one that is observed too."""
    pipe = MODELS[model]()
    plain = observe(pipe, "a fox", ["fox"], **options(model, guided))
    both = observe(pipe, "a fox", ["fox"], control=control, **options(model, guided))
    np.testing.assert_allclose(both.map("fox", 0, step=0), plain.map("fox", 0, step=0), atol=1e-6, rtol=1e-4)
    if control.kind == "pag":
        np.testing.assert_allclose(both.maps[0], plain.maps[0], atol=1e-6, rtol=1e-4, err_msg="not the perturbed pass")
    with attached(pipe, control, guidance_scale=2.0):
        expected = pipe(["a fox"], **options(model, guided)).images
    assert both.image.tobytes() == expected[0].tobytes() != plain.image.tobytes()
    shared = both.statistics["shared"]
    assert (shared[:, -1].min() > 1e-4) == (control.kind == "aligned")
    assert shared[:, 0].max() == 0


def test_only_the_first_call_with_the_prompts_is_watched():
    """Not the call in which skip-layer guidance leaves out block 1, nor one that carries no prompt."""
    pipe = tiny_sd3()
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 1.0}
    plain = observe(pipe, "a fox", ["fox"], **options("SD3", True))
    skipped = observe(pipe, "a fox", ["fox"], **skipping, **options("SD3", True))
    assert np.array_equal(skipped.maps[0], plain.maps[0])
    assert not np.array_equal(skipped.maps[1], plain.maps[1])
    call: Any = SimpleNamespace(perturbed=False, step=SimpleNamespace(call=0), conditional=(False,))
    assert type(Observe().plan(call)) is Effect


def test_a_controlled_pipeline_takes_its_settings_and_amended_prompts():
    pipe = load("tiny-flux", device="cpu")
    generator = [torch.Generator().manual_seed(3)]
    stock = pipe("a fox, comic", num_inference_steps=2, generator=generator).images[0]
    found = observe(pipe, "a fox, comic", num_inference_steps=2, generator=torch.Generator().manual_seed(3))
    assert found.image.tobytes() == stock.tobytes()
    assert found.words == ("fox", "comic")
    with pytest.warns(NoEffectWarning, match="was not taken and is lost"):
        pipe("a fox, comic", num_inference_steps=1, control=Observe(tokens=((1,),)))


# ---------------------------------------------------------------- what is kept and shown


def test_where_sizes_and_means(pipe):
    where = Where(blocks="1-2", heads="L1H0 L1H3 L2H2", steps="1-1")
    whole = observe(pipe, "a fox", ["fox", "a"], **options("FLUX", False))
    part = observe(pipe, "a fox", ["fox", "a"], where=where, **options("FLUX", False))
    assert (part.steps, part.numbers) == ((1,), (1, 2))
    assert part.blocks == ("L1 (double 1)", "L2 (single 0)")
    chosen = [(0, 0), (0, 3), (1, 2)]
    assert np.isfinite(part.statistics["text"][0]).sum() == 3
    for place, head in chosen:
        assert np.array_equal(part.maps[0, place, :, head], whole.maps[1, place + 1, :, head])
    expected = np.mean([part.maps[0, place, 1, head] for place, head in chosen], axis=0)
    np.testing.assert_allclose(part.map("A"), expected, rtol=1e-6)
    np.testing.assert_array_equal(whole.map("fox", 3, 1, 0), whole.maps[0, 3, 0, 1])
    np.testing.assert_allclose(whole.map("fox", "L3 (single 1)", step=1), whole.maps[1, 3, 0].mean(0), rtol=1e-6)

    small = observe(pipe, "a fox", ["fox"], size=4, dtype="float16", **options("FLUX", False))
    assert small.maps.dtype == np.float16
    assert small.maps.shape[-2:] == (4, 4)
    pooled = whole.maps[:, :, :1].astype(np.float64)
    bands = [pooled[..., a:b, :].mean(-2) for a, b in ((0, 2), (1, 3), (3, 5), (4, 6))]  # 6 rows on 4
    pooled = np.stack(bands, -2).reshape(*pooled.shape[:4], 4, 4, 2).mean(-1)
    np.testing.assert_allclose(small.maps, pooled, rtol=2e-3, atol=1e-6)
    assert small.map("fox").dtype == np.float32


def test_nothing_is_kept_but_what_was_taken(pipe):
    watch = Observe(tokens=((2,),))
    with attached(pipe, watch) as session:
        pipe("a fox", **options("FLUX", False))
        first = session.recorded(watch)
        with pytest.raises(ControlError, match="observe recorded nothing"):
            session.recorded(watch)
        pipe("an owl", **options("FLUX", False))
        assert session.recorded(watch) is not first
    assert not session.bank.nbytes
    with pytest.warns(NoEffectWarning, match="what observe recorded was not taken"), attached(pipe, watch):
        pipe("a fox", **options("FLUX", False))
    off = Observe(tokens=((2,),), strength=0)
    with warnings.catch_warnings(), attached(pipe, off) as session:
        warnings.simplefilter("error")
        pipe("a fox", **options("FLUX", False))
        assert not session.bank.nbytes


def test_overlays_are_dim_where_nothing_is_read_and_bright_where_much_is():
    values = np.zeros((4, 6), np.float32)
    values[1, 4] = 0.2
    picture = Image.new("RGB", (60, 40), "white")
    shown = np.asarray(overlaid(picture, values)).astype(int)
    assert shown.shape == (280, 420, 3)
    assert tuple(shown[260, 20]) == (140, 140, 140), "the picture's grey, dimmed"
    top = np.unravel_index((shown[..., 0] - shown[..., 2]).argmax(), shown.shape[:2])
    assert abs(top[0] - 105) < 40
    assert abs(top[1] - 315) < 40
    assert (np.asarray(overlaid(picture, values, top=2.0)).max((0, 1)) <= 140).all()
    light = coloured(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()


@pytest.mark.parametrize("model", ["tiny-sd3", "tiny-flux"])
def test_the_command_writes_a_sheet_maps_and_statistics(model, tmp_path):
    attention(
        "a red fox, comic", tmp_path / "out", ["fox"], model=model, steps=2, at_steps="1", blocks="1-2", device="cpu"
    )
    with Image.open(tmp_path / "out" / "attention.png") as sheet:
        assert min(sheet.size) > 500
    with np.load(tmp_path / "out" / "maps.npz") as saved:
        assert saved["maps"].shape == (1, 2, 1, 4, 8, 8)
        assert list(saved["words"]) == ["fox"]
        assert saved["steps"].tolist() == [1]
    heads = json.loads((tmp_path / "out" / "heads.json").read_text())
    assert set(heads["statistics"]) == set(STATISTICS)
    assert np.array(heads["statistics"]["near"]).shape == (1, 2, 4)
    with mock.patch("attnctrl.app.attention_cli.load_model") as load, pytest.raises(ControlError, match="exists alr"):
        attention("a red fox, comic", tmp_path / "out", model=model)
    assert not load.called


# ---------------------------------------------------------------- refusals

REFUSED = {
    "there is no word 'owl' in the prompt; its words are a, fox": {"words": ["owl"]},
    "row 1 is not among the 1 pictures": {"row": 1},
    "leave output_type out": {"output_type": "latent"},
    "leave return_dict out": {"return_dict": False},
    "block 7 .*|blocks: 7 is out of range": {"where": Where(blocks="7")},
    "recorded nothing: none of the steps '9' came up": {"where": Where(steps="9")},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_say_what_and_why(message, pipe):
    with pytest.raises(ControlError, match=message) as fault:
        observe(pipe, "a fox", **REFUSED[message], **options("FLUX", False))
    assert "\n" not in str(fault.value)


def test_refusals_of_the_control_and_the_observation(pipe):
    for watch, message in (
        (Observe(row=1), "picture 1 is not in this batch of 1"),
        (Observe(tokens=((3, 12),)), "text column 12"),
    ):
        with pytest.raises(ControlError, match=message), attached(pipe, watch):
            pipe("a fox", **options("FLUX", False))
    for tokens in (((),), ((-1,),), ((2, 2),)):
        with pytest.raises(ValueError, match="text columns from 0 on"):
            Observe(tokens=tokens)
    found = observe(pipe, "a fox", where=Where(blocks="1", heads="H1", steps="0"), **options("FLUX", False))
    for wrong, message in (
        ({"word": "owl"}, "word 'owl' was not observed; there is fox"),
        ({"block": 3}, "block 3 was not observed; there is 1"),
        ({"block": "L3"}, r"block 'L3' was not observed; there is L1 \(double 1\)"),
        ({"step": 1}, "step 1 was not observed; there is 0"),
        ({"head": 9}, "head 9"),
        ({"head": 0}, "nothing was observed of 'fox' there"),
    ):
        with pytest.raises(ControlError, match=message):
            found.map(**{"word": "fox", **wrong})
    long = "abcdefgh jklmnop fox"
    with pytest.warns(NoEffectWarning, match="not read and not observed: fox"):
        assert observe(pipe, long, **options("FLUX", False)).words == ("abcdefgh", "jklmnop")


def test_compiled_blocks_record_with_graph_breaks_and_refuse_without():
    def run(full: bool | None = None) -> Any:
        torch._dynamo.reset()
        shrink(pipe := tiny_flux())
        if full is not None:
            pipe.transformer.single_transformer_blocks[0].compile(fullgraph=full, backend="eager")
        return observe(pipe, "a fox", **{**options("FLUX", False), "num_inference_steps": 1})

    expected, found = run(), run(full=False)
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-5)
    with pytest.raises(ControlError, match="attention cannot be recorded in blocks compiled with fullgraph=True"):
        run(full=True)
    torch._dynamo.reset()


def test_the_description_is_data():
    watch = Observe(tokens=((1, 2), (5,)), row=1, where=Where(steps="0-3"))
    assert Observe.model_validate_json(watch.model_dump_json()) == watch
    assert hash(watch) == hash(watch.model_copy())
    assert SimpleNamespace(**watch.model_dump()).kind == "observe"
