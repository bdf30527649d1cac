"""Sharing on SD3 and SD3.5 against the dense float64 references: both halves of a guided batch, every way to shift."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from PIL import Image
from references.freecus import Subject, calculate_mu, freecus_attention, reference_sigma
from references.sd3 import plain_site, reference_forward
from references.sd3_sharing import alignedgen_sd3, mirrored_attention, stylealigned_sd3
from test_references_sd3 import EXACT, VERSIONS, inputs
from tiny import tiny_sd3

from attnctrl import AlignedStyle, ControlError, NaiveSharing, Reference, StyleAligned, Where, attached
from attnctrl.errors import PlaceWarning
from attnctrl.processors import FreeCus
from attnctrl.processors.attaching import host_of

GRID = (4, 6)
IMAGE = GRID[0] * GRID[1]
ALL, LATE = {0, 1, 2}, {1, 2}
EVERY = Where(blocks="all")
versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS.keys())


def ours(version, control, call, guided=False, images_per_prompt=1):
    pipe = tiny_sd3(**version)
    pipe.transformer.double()
    pipe.vae.double()
    pipe._guidance_scale = 5.0 if guided else 1.0
    pipe.scheduler.set_timesteps(4)
    pipe.scheduler.set_begin_index(1)
    with torch.no_grad(), attached(pipe, control, images_per_prompt=images_per_prompt):
        return pipe.transformer(**call, return_dict=False)[0]


def naive(version, call, site, blocks, **more):
    def chosen(index, kind, *rest):
        return site(*rest) if index in blocks else plain_site(index, kind, *rest)

    with torch.no_grad():
        return reference_forward(tiny_sd3(**version).transformer.double(), **call, site_fn=chosen, **more, **EXACT)


def same(result, expected, version, call):
    plain = naive(version, call, None, set())
    assert (expected - plain).abs().max() > 1e-2, "the case does not tell methods apart"
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=2e-6)


CASES = {
    "StyleAligned": (StyleAligned(), partial(stylealigned_sd3, groups=2), ALL),
    "score scale and shift": (
        StyleAligned(key_scale=0.5, strength=2.0),
        partial(stylealigned_sd3, groups=2, score_scale=0.5, score_shift=math.log(2)),
        ALL,
    ),
    "AdaIN of values": (StyleAligned(adain_values=True), partial(stylealigned_sd3, groups=2, adain_v=True), ALL),
    "full sharing": (StyleAligned(share="all"), partial(stylealigned_sd3, groups=2, full_share=True), ALL),
    "naive": (NaiveSharing(), partial(alignedgen_sd3, groups=2, adain=False, lambda_=1.0), LATE),
    "aligned, unshifted": (AlignedStyle(additive="none"), partial(alignedgen_sd3, groups=2), LATE),
}


@versions
@pytest.mark.parametrize(("control", "site", "blocks"), CASES.values(), ids=CASES.keys())
def test_a_guided_batch_equals_the_naive_one(version, control, site, blocks):
    call = inputs(rows=6)
    same(ours(version, control, call, guided=True), naive(version, call, site, blocks), version, call)


@versions
def test_only_one_of_the_two_attentions(version):
    call = inputs(rows=4)
    control = StyleAligned(where=Where(blocks="joint"))

    def joint(index, kind, *rest):
        return stylealigned_sd3(*rest) if kind == "joint" else plain_site(index, kind, *rest)

    model = tiny_sd3(**version).transformer.double()
    with torch.no_grad():
        expected = reference_forward(model, **call, site_fn=joint, **EXACT)
    torch.testing.assert_close(ours(version, control, call), expected, atol=2e-6, rtol=2e-6)
    if version.get("dual"):
        assert (ours(version, StyleAligned(), call) - expected).abs().max() > 1e-3


@versions
@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (0, -1)])
def test_a_shifted_copy_supplies_keys_and_values(version, shift):
    """One more row in each half: row 0 again, its positions a grid away, read by the others, dropped from the result."""
    call = inputs(rows=6)
    rows = [0, 0, 1, 2, 3, 3, 4, 5]
    there = (shift[0] * GRID[0], shift[1] * GRID[1])
    site = partial(mirrored_attention, source_row=0, ref_row=1, groups=2)
    wide = {name: value[rows] for name, value in call.items()}
    expected = naive(version, wide, site, LATE, position_shift={0: there, 4: there})[[1, 2, 3, 5, 6, 7]]
    same(ours(version, AlignedStyle(shift=shift), call, guided=True), expected, version, call)


@versions
def test_the_reference_itself_may_stand_aside(version):
    call = inputs(rows=6)
    site = partial(alignedgen_sd3, groups=2)
    expected = naive(version, call, site, LATE, position_shift={0: (0, 6), 3: (0, 6)})
    same(ours(version, AlignedStyle(additive="move"), call, guided=True), expected, version, call)


def test_every_image_of_a_prompt_has_its_own_set_and_copy():
    """Two images a prompt: rows 0 2 4 and 1 3 5 are sets, each with its own shifted copy."""
    call, version = inputs(rows=6), VERSIONS["SD3"]
    whole = ours(version, AlignedStyle(), call, images_per_prompt=2)
    for j in (0, 1):
        alone = ours(version, AlignedStyle(), {name: value[j::2] for name, value in call.items()})
        torch.testing.assert_close(whole[j::2], alone, atol=1e-9, rtol=1e-9)


PLACES = {
    # a grid in a table of 24 x 24: where its second crop stands, in tokens
    "beside": ((4, 6), (0, 6)),
    "beside, as long as it fits": ((20, 8), (0, 8)),
    "below": ((4, 10), (4, 0)),
    "towards the corner": ((9, 10), (8, 7)),
    "down alone, where columns fill the table": ((10, 24), (7, 0)),
}


@pytest.mark.parametrize(("grid", "there"), PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("additive", ["copy", "move"])
def test_a_reference_stands_where_the_table_has_room(grid, there, additive):
    """The dense result with that very shift; said once, unless it is the usual one, which is equal bit for bit."""
    call, control = inputs(rows=4, grid=grid), AlignedStyle(additive=additive)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = ours({}, control, call, guided=True)
    told = [str(one.message) for one in said if issubclass(one.category, PlaceWarning)]
    if there[1] == grid[1]:
        assert not told
        assert torch.equal(result, ours({}, control.model_copy(update={"shift": (0, 1)}), call, guided=True))
    else:
        assert len(told) == 1
        assert f"{there[0]} tokens down" in told[0]
    if additive == "move":
        expected = naive({}, call, partial(alignedgen_sd3, groups=2), LATE, position_shift={0: there, 2: there})
    else:
        wide = {name: value[[0, 0, 1, 2, 2, 3]] for name, value in call.items()}
        site = partial(mirrored_attention, source_row=0, ref_row=1, groups=2)
        expected = naive({}, wide, site, LATE, position_shift={0: there, 3: there})[[1, 2, 4, 5]]
    same(result, expected, {}, call)


def test_a_grid_without_any_room_is_refused():
    with pytest.raises(ControlError, match=r"24 x 24 tokens fills this model's position table.*set shift=0:0"):
        ours({}, AlignedStyle(), inputs(rows=2, grid=(24, 24)))
    with pytest.raises(ControlError, match=r"leaves this model's position table of 24 x 24; set shift=native"):
        ours({}, AlignedStyle(shift=(0, 1)), inputs(rows=2, grid=(4, 10)))
    with pytest.raises(ControlError, match="set shift"):
        ours({}, AlignedStyle(share="all"), inputs())


def half_mask():
    mask = Image.new("RGB", (48, 32), "black")
    mask.paste("white", (0, 0, 24, 32))
    return mask


def picture_row(pipe, reference, sigma, call):
    """The reference's row of every argument, worked out here."""
    pixels = pipe.image_processor.preprocess(reference.picture, height=32, width=48).double()
    config = pipe.vae.config
    with torch.no_grad():
        latent = pipe.vae.double().encode(pixels).latent_dist.mode()
        text, _, pooled, _ = pipe.encode_prompt([reference.caption], None, None, do_classifier_free_guidance=False,
                                                max_sequence_length=call["encoder_hidden_states"].shape[1] - 32)  # fmt: skip
    latent = (latent - config.shift_factor) * config.scaling_factor
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(reference.seed)).double()
    return {
        "hidden_states": sigma * noise + (1 - sigma) * latent,
        "encoder_hidden_states": text.double(),
        "pooled_projections": pooled.double(),
        "timestep": call["timestep"][:1],
    }


@versions
def test_freecus_with_two_references_on_sd3(version):
    """Foreground only, scaled text keys, own strengths, a cleaner reference, the step's own timestep, in both halves."""
    foreground = [i for i in range(IMAGE) if i % GRID[1] < 3]
    first = Reference(picture=Image.new("RGB", (48, 32), "gold"), caption="a coin", mask=half_mask())
    second = Reference(picture=Image.new("RGB", (48, 32), "navy"), caption="a sea", seed=3, strength=0.5)
    control = FreeCus(reference=(first, second), where=EVERY)
    pipe = tiny_sd3(**version)
    call = inputs(rows=6)
    call["encoder_hidden_states"] = torch.randn(6, 40, 16, generator=torch.Generator().manual_seed(2)).double()
    call["timestep"][:] = 700.0
    pipe.scheduler.set_timesteps(4)
    mu = calculate_mu(IMAGE, pipe.scheduler.config)
    sigma = reference_sigma(float(pipe.scheduler.sigmas[1]), mu)
    added = [picture_row(pipe, one, sigma, call) for one in (first, second)]
    negative = [
        {
            name: call[name][:1] if name in ("encoder_hidden_states", "pooled_projections") else value
            for name, value in row.items()
        }
        for row in added
    ]
    wide = {
        name: torch.cat(
            [*(row[name] for row in negative), value[:3], *(row[name] for row in added), value[3:]],
        )
        for name, value in call.items()
    }
    subjects = [Subject(0, foreground, 0.0), Subject(1, list(range(IMAGE)), math.log(0.5))]

    def site(q, k, v, image_len):
        return freecus_attention(q, k, v, subjects, q.shape[1] - image_len, 1.1, image_first=True, groups=2)

    expected = naive(version, wide, site, ALL)[[2, 3, 4, 7, 8, 9]]
    same(ours(version, control, call, guided=True), expected, version, call)


def test_sites_of_sd35_and_their_names():
    sites = host_of(tiny_sd3("rms_norm", (0, 1))).sites
    assert [site.label for site in sites] == [
        "L0 (joint 0)", "L0 (dual 0)", "L1 (joint 1)", "L1 (dual 1)", "L2 (joint 2)",
    ]  # fmt: skip
    assert list(Where(blocks="late").select(sites)) == [2, 3, 4]
    assert list(Where(blocks="last").select(sites)) == [4]
    assert list(Where(blocks="0").select(sites)) == [0, 1]
    assert list(Where(blocks="dual:1").select(sites)) == [3]
    assert Where(heads="L1H2").select(sites) == {2: (2,), 3: (2,)}
