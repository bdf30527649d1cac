"""`open_source`, `edit` and sessions: what is bit-equal, what is kept, what is said, what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from pydantic import ValidationError
from test_observing import MODELS, models, options
from tiny import tiny_flux, tiny_sd3

from attnctrl import (
    ConsistEdit,
    ControlError,
    Drag,
    EditSession,
    NoEffectWarning,
    Region,
    attached,
    controlled,
    edit,
    open_source,
)
from attnctrl.pipelines import editing
from attnctrl.pipelines.edits import run_edits
from attnctrl.pipelines.recipe import EditRecipe

OURS = {
    "FLUX": lambda: tiny_flux(cls=controlled(FluxPipeline)),
    "SD3": lambda: tiny_sd3(cls=controlled(StableDiffusion3Pipeline)),
}
RIGHT = Region(box=(0.5, 0.0, 1.0, 1.0))


def call(model: str, guided: bool = False) -> dict[str, Any]:
    return {name: value for name, value in options(model, guided).items() if name != "generator"}


@pytest.mark.parametrize("guided", [False, True])
@models
def test_opening_draws_the_pipeline_s_own_picture_and_keeps_its_run(model, guided):
    pipe = MODELS[model]()
    stock = {site: site.processor for site in pipe.transformer.modules() if hasattr(site, "processor")}
    opened = open_source(pipe, "a fox", seed=0, **call(model, guided))
    assert opened.image.tobytes() == pipe("a fox", **options(model, guided)).images[0].tobytes()
    assert opened.source.steps == 2
    assert opened.source.attention.shape == (len(opened.source.columns), 48)
    assert all(site.processor is processor for site, processor in stock.items())


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("region", [None, RIGHT, "fox"])
@models
def test_an_empty_edit_is_the_source(model, region, guided):
    """The same prompt under any mask: the source's row runs beside it in one batch, so that only rounding differs."""
    pipe = MODELS[model]()
    opened = open_source(pipe, "a fox", **call(model, guided))
    same = edit(pipe, opened, "a fox", ConsistEdit(), region=region, compare=False)
    torch.testing.assert_close(same.source.latents, opened.source.latents, atol=2e-4, rtol=2e-4)


@models
def test_an_edit_of_everything_is_what_the_prompt_alone_makes(model):
    pipe = MODELS[model]()
    opened = open_source(pipe, "a fox", **call(model))
    free = edit(pipe, opened, "an owl", ConsistEdit(alpha=0), region=Region(box=(0, 0, 1, 1)))
    assert free.plain is not None
    assert free.changed == pytest.approx(free.plainly, abs=1e-3)
    assert free.took


@models
def test_what_is_kept_outside_is_the_source_s_own_latents(model):
    pipe = MODELS[model]()
    opened = open_source(pipe, "a fox", **call(model))
    kept = edit(pipe, opened, "an owl", region=RIGHT, keep=True)
    ours, theirs = (x.source.latents[-1] for x in (kept, opened))
    if ours.ndim == 2:
        ours, theirs = (x.unflatten(0, (6, 8)).permute(2, 0, 1).repeat_interleave(2, -1) for x in (ours, theirs))
    assert torch.equal(ours[..., :8], theirs[..., :8])
    assert not torch.equal(ours[..., 8:], theirs[..., 8:])


@models
def test_edits_go_on_from_edits(model):
    """An edit is opened in its turn: the next one replays it."""
    pipe = MODELS[model]()
    first = edit(pipe, open_source(pipe, "a fox", **call(model)), "an owl", ConsistEdit(), region=RIGHT, compare=False)
    again = edit(pipe, first, "an owl", ConsistEdit(), region="owl", compare=False)
    assert first.image.tobytes() == again.before.tobytes()
    with pytest.raises(ControlError, match="no word 'fox' in the prompt; its words are an, owl"):
        edit(pipe, first, "a hat", ConsistEdit(), region="fox")


def test_nothing_edited_is_said_with_the_way_on(pipe, monkeypatch):
    monkeypatch.setattr(editing, "UNCHANGED", 0.5)
    opened = open_source(pipe, "a fox", **call("FLUX"))
    with pytest.warns(NoEffectWarning, match=r"hardly to be seen.*the prompt alone .*consistedit with alpha=0.5"):
        edit(pipe, opened, "an owl", ConsistEdit(alpha=1), region=RIGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        edit(pipe, opened, "a fox", ConsistEdit(), region=RIGHT)


# ---------------------------------------------------------------- regions


def black(size: tuple[int, int] = (64, 48), light: int = 0, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, light if mode in ("L", "1") else (light,) * len(mode))


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (Region(mask=black()), "leaves no token of the 6 x 8 grid"),
        (Region(box=(0, 0, 0.5, 1)) & Region(box=(0.5, 0, 1, 1)), "leaves no token"),
        ("dog", "no word 'dog' in the prompt; its words are a, fox"),
        (Region(words="dog") | RIGHT, "no word 'dog'"),
    ],
)
def test_a_region_of_nothing_is_refused(pipe, region, said):
    opened = open_source(pipe, "a fox", **call("FLUX"))
    with pytest.raises(ControlError, match=said):
        edit(pipe, opened, "an owl", ConsistEdit(), region=region)


@pytest.mark.parametrize(
    "mask", [black(light=255), black((640, 480), 255), black((9, 9), 255, "L"), black(light=255, mode="RGBA")]
)
def test_a_mask_of_everything_of_any_size_and_mode_is_taken(pipe, mask):
    opened = open_source(pipe, "a fox", **call("FLUX"))
    whole = edit(pipe, opened, "an owl", ConsistEdit(alpha=0), region=Region(mask=mask))
    assert whole.region.getextrema() == (255, 255)
    assert whole.changed == pytest.approx(whole.plainly, abs=0.01)


def test_overlapping_regions_are_one(pipe):
    opened = open_source(pipe, "a fox", **call("FLUX"))
    left = Region(box=(0, 0, 0.75, 1))
    both = edit(pipe, opened, "an owl", ConsistEdit(), region=left | RIGHT, compare=False)
    assert both.region.getextrema() == (255, 255)
    several = [ConsistEdit(region=left), ConsistEdit(region=RIGHT)]
    with pytest.raises(ControlError, match="both set the image"):
        edit(pipe, opened, "an owl", several)


def test_words_are_where_the_attention_is(pipe):
    opened = open_source(pipe, "a fox", **call("FLUX"))
    found = opened.source.map("fox")
    inside = torch.tensor(Region(words="fox", threshold=0.5).weights((6, 8), opened.source.find)) > 0
    assert torch.equal(inside, (found - found.min()) > 0.5 * (found.max() - found.min()))
    whole = opened.source.map("a fox")
    torch.testing.assert_close(whole, found + opened.source.map("a"))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"height": 64}, "the source and this run have 6 x 8 and 8 x 8 image tokens"),
        ({"num_inference_steps": 3}, "the source has 2 steps and this run 3; take as many"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt cannot be given here"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_a_run_that_is_not_the_source_s_is_refused(pipe, given, said):
    opened = open_source(pipe, "a fox", **call("FLUX"))
    with pytest.raises(ControlError, match=said):
        edit(pipe, opened, "an owl", ConsistEdit(), compare=False, **given)


def test_an_edit_needs_a_source_and_a_region_to_keep(pipe):
    none = pytest.raises(ControlError, match="consistedit edits a picture, and none is open; use attnctrl edit")
    with none, attached(pipe, ConsistEdit()):
        pipe("a fox", **options("FLUX", False))
    with pytest.raises(ControlError, match="keep=True keeps what lies outside of a region"):
        edit(pipe, open_source(pipe, "a fox", **call("FLUX")), "an owl", keep=True)


# ---------------------------------------------------------------- sessions


@pytest.mark.parametrize("model", ["FLUX", "SD3"])
def test_a_session_goes_back_and_forth_and_its_recipe_replays(model):
    pipe = OURS[model]()
    numbers = {**call(model), "max_sequence_length": 12}
    session = EditSession(pipe, "a fox", **numbers)
    first = session.edit("an owl", ConsistEdit(), region=RIGHT)
    second = session.edit("a hat", ConsistEdit(alpha=0.5), region="owl")
    assert session.undo().image is first.image
    assert session.undo().image is first.before
    assert session.redo().image is first.image
    third = session.edit("a cup", ConsistEdit(), region=RIGHT)
    with pytest.raises(ControlError, match="nothing to redo"):
        session.redo()
    assert [one.of for one in session.recipe.edits] == [0, 1, 1]
    again = run_edits(pipe, session.recipe, compare=False)
    drawn = [one.image.tobytes() for one in (first, second, third)]
    assert [one.tobytes() for one in again.pictures[1:]] == drawn


def test_a_recipe_s_edits_are_of_earlier_pictures():
    with pytest.raises(ValidationError, match="edit 2 is of picture 2, which comes later; 0 is the source"):
        EditRecipe(prompt="a fox", edits=[{"prompt": "an owl"}, {"prompt": "a hat", "of": 2}])


def test_a_session_lets_the_oldest_go(pipe):
    session = EditSession(pipe, "a fox", limit=0, **call("FLUX"))
    for word in ("owl", "hat", "cup"):
        session.edit(word, ConsistEdit(), region=RIGHT, compare=False)
    assert session.undo().source.prompt == "hat"
    for _ in range(100):
        with pytest.raises(ControlError, match="nothing to undo: older edits were let go"):
            session.undo()
    fresh = EditSession(pipe, "a fox", **call("FLUX"))
    with pytest.raises(ControlError, match="nothing to undo: the picture is as it was opened"):
        fresh.undo()
    with pytest.raises(ControlError, match="nothing was edited yet"):
        fresh.recipe  # noqa: B018


def test_a_drag_may_change_where_the_object_goes_too(pipe):
    """What is measured and kept: the object's place, its goal, and nothing else."""
    opened = open_source(pipe, "a fox", **call("FLUX"))
    corner = Region(box=(0, 0, 0.25, 0.5))
    moved = edit(pipe, opened, "a fox", Drag(by=(0.5, 0.0)), region=corner, keep=True, compare=False)
    inside = [light > 127 for light in moved.region.resize((8, 6), Image.Resampling.NEAREST).tobytes()]
    assert inside == [row < 3 and column in (0, 1, 4, 5) for row in range(6) for column in range(8)]
    ours, theirs = (x.source.latents[-1].unflatten(0, (6, 8)) for x in (moved, opened))
    assert torch.equal(ours[3:], theirs[3:])
    assert not torch.equal(ours[:3, 4:6], theirs[:3, 4:6])
