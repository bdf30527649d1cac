"""Parts of the schedule in short runs: no part is left unserved, and parts that meet in one step do not overwrite."""

from __future__ import annotations

from functools import partial

import pytest
from evaluations import acting, evaluations
from tiny import tiny_flux, tiny_sd3

from attnctrl import APG, SLG, AlignedStyle, ConflictError, SoftPAG, StyleAligned, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
MODELS = {"FLUX": tiny_flux, "SD3": tiny_sd3}
both_models = pytest.mark.parametrize("model", MODELS)


def acts_at(pipe, control, run) -> list[int]:
    return [index for index, acted in enumerate(acting(pipe, control, run)) if acted]


def run_of(latents_of, pipe, steps: int):
    scale = {} if hasattr(pipe.transformer, "x_embedder") else {"guidance_scale": 1.0}
    return partial(latents_of, pipe, n=2, steps=steps, height=32, width=32, **scale)


@both_models
@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [0]), (2, [0]), (4, [0]), (5, [0]), (6, [1]), (10, [1]), (16, [1, 2, 3])]
)
def test_the_default_of_slg_acts_in_every_run(model, steps, expected, latents_of):
    """1%-20%: in a run of five steps no step begins there; the part lies in step 0."""
    control = SLG(where=Where(blocks="1"))
    assert control.where.steps == "1%-20%", "the default under test"
    pipe = MODELS[model]()
    assert acts_at(pipe, control, run_of(latents_of, pipe, steps)) == expected


@pytest.mark.parametrize(
    ("part", "steps", "expected"),
    [("30%-35%", 4, [1]), ("45%-50%", 4, [1]), ("50%-55%", 4, [2]), ("99%-100%", 4, [3]), ("99%-100%", 1, [0]),
     ("0%-1%", 4, [0]), ("26%-49.9%", 4, [1]), ("20%-60%", 5, [1, 2]), ("33%-34%", 3, [1]), ("66%-66.5%", 3, [1]),
     ("0%-50%", 4, [0, 1]), ("50%-100%", 4, [2, 3]), ("0%-100%", 3, [0, 1, 2]), ("0%-1%, 70%-71%", 3, [0, 2]),
     ("2, 10%-11%", 3, [0, 2])],
)  # fmt: skip
def test_a_part_in_which_no_step_begins_means_the_step_that_it_lies_in(part, steps, expected, pipe, latents_of):
    for control in (SoftPAG(where=Where(heads="L1H1 L3H2", steps=part)), AlignedStyle(where=Where(steps=part))):
        assert acts_at(pipe, control, run_of(latents_of, pipe, steps)) == expected


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_no_part_is_left_unserved(steps, pipe, latents_of):
    """Ten parts side by side: each acts, and together they act at every step."""
    served = [
        acts_at(pipe, AlignedStyle(where=Where(steps=f"{n}0%-{n + 1}0%")), run_of(latents_of, pipe, steps))
        for n in range(10)
    ]
    assert all(served)
    assert {index for one in served for index in one} == set(range(steps))


PAIRS = {
    "the same features": (AlignedStyle(), StyleAligned()),
    "classifier-free guidance": (APG(), APG(eta=1.0)),
}


@pytest.mark.parametrize("controls", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("parts", [("0%-10%", "10%-20%"), ("80%-90%", "90%-100%")], ids=["first", "last"])
def test_parts_that_meet_in_one_step_conflict_before_it(controls, parts, pipe, latents_of):
    """Of ten steps each part has its own; of five both mean the same one, and neither may win in silence."""
    first, second = (
        one.model_copy(update={"where": one.where.model_copy(update={"steps": part})})
        for one, part in zip(controls, parts, strict=True)
    )
    run = partial(latents_of, pipe, n=2, height=32, width=32, cfg=2.0)
    with attached(pipe, [first, second], guidance_scale=2.0):
        run(steps=10)
    with (
        evaluations(pipe) as seen,
        pytest.raises(ConflictError, match=f"{first.kind} and {second.kind} both set"),
        attached(pipe, [first, second], guidance_scale=2.0),
    ):
        run(steps=5)
    assert not seen, "at the run's start at the latest"
