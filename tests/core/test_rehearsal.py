"""Rehearsals: a model of an outside file, loops of one's own on a bare transformer, views, two transformers, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
import torch
from outside.joint_model import JointModel
from tiny import tiny_flux, tiny_sd3, tiny_sd3_transformer, tiny_transformer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnctrl import PAG, SEG, SLG, TPG, AlignedStyle, ControlError, SoftPAG, StyleAligned, Where, attached
from attnctrl.branch import Branch, Branches
from attnctrl.control import Call, Control
from attnctrl.effect import Effect, Features
from attnctrl.processors.attaching import host_of

GRID, TEXT = (4, 5), 3
LAMBDA = float(torch.tensor(1.1))  # as a 0-dim tensor it is a float32
IDS = torch.cartesian_prod(torch.arange(4.0), torch.arange(5.0))


def joint() -> JointModel:
    torch.manual_seed(0)
    model = JointModel().eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def arguments(rows: int = 3, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    latents, text = (torch.randn(rows, *s, generator=g, dtype=torch.float64) for s in ((20, 4), (TEXT, 8)))
    return {"latents": latents, "text": text, "timestep": torch.full((rows,), 0.5).double(), "ids": IDS.double()}


def run(model: Any, control: Any, step: int = 0, **given: Tensor) -> Tensor:
    with torch.no_grad(), attached(model, control) as session:
        if session:
            session.at(step, of=4, sigma=0.5)
        return model(**given)[0]


def turned(x: Tensor, ids: Tensor) -> Tensor:
    """Rotation written with complex numbers."""
    frequencies = 100.0 ** (-torch.arange(4) / 4)
    angle = torch.cat([ids[:, :1] * frequencies, ids[:, 1:] * frequencies], -1)
    pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([pairs.real, pairs.imag], -1)


def dense_aligned(model: JointModel, given: dict[str, Tensor]) -> Tensor:
    """AlignedGen on the outside model, dense and plain: rows after the first read its image keys a grid to the right."""
    time = given["timestep"][:, None, None]
    text = model.refiner(model.text(given["text"]), None, time)
    x = torch.cat([model.embed(given["latents"]), text], 1)
    ids = torch.cat([given["ids"], torch.zeros(TEXT, 2).double()])
    for n, layer in enumerate(model.layers):
        q, k, v = layer.attention.projected(x)
        late = 2 * n >= len(model.layers)
        if late:
            q, k = q.clone(), k.clone()
            for one in (q, k):
                image = one[:, :20]
                mean, std = image.mean(1, keepdim=True), (image.var(1, keepdim=True) + 1e-5).sqrt()
                one[1:, :20] = ((image - mean) / std * std[:1] + mean[:1])[1:]
        outs = []
        for row in range(len(x)):
            keys, values = turned(k[row], ids), v[row]
            if late and row:
                away = turned(k[0, :20], given["ids"] + torch.tensor([0.0, GRID[1]]).double())
                keys, values = torch.cat([keys, LAMBDA * away]), torch.cat([values, v[0, :20]])
            parts = (turned(q[row], ids), keys, values)
            outs.append(scaled_dot_product_attention(*(p.transpose(0, 1)[None] for p in parts))[0].transpose(0, 1))
        x = x + layer.attention.out(torch.stack(outs).flatten(2)) * (1 + time)
        x = x + torch.tanh(layer.more(x))
    return model.last(x[:, :20])


@torch.no_grad()
def test_sharing_on_a_model_of_an_outside_file_equals_dense():
    model, given = joint(), arguments()
    found = run(model, AlignedStyle(), **given)
    torch.testing.assert_close(found, dense_aligned(model, given), atol=1e-9, rtol=1e-9)
    stock = model(**given)[0]
    assert (found - stock)[1:].abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(found[0], run(model, None, **given)[0])
    assert torch.equal(run(model, AlignedStyle(strength=0), **given), stock)
    assert type(model.layers[0].attention.processor).__name__ == "PlainProcessor"


@pytest.mark.parametrize(
    "guide",
    [PAG(where=Where(blocks="1")), SoftPAG(where=Where(heads="L2H1")), SEG(where=Where(blocks="all"), sigma=1.0),
     SLG(where=Where(blocks="1")), TPG(where=Where(blocks="2"))],
    ids=lambda one: one.kind,
)  # fmt: skip
def test_guides_on_a_model_of_an_outside_file(guide):
    """At strength -1 the perturbed prediction itself; from the prefix bit-equal to the whole pass; off is stock."""
    model, given = joint(), arguments()
    stock, perturbed = (run(model, one, **given) for one in (None, guide.model_copy(update={"strength": -1.0})))
    assert (stock - perturbed).abs().max() > 1e-3
    pushed = run(model, guide.model_copy(update={"strength": 2.0}), **given)
    torch.testing.assert_close(pushed, stock + 2 * (stock - perturbed), atol=1e-9, rtol=1e-9)
    assert torch.equal(run(model, guide.model_copy(update={"strength": 0.0}), **given), stock)


@torch.no_grad()
def test_a_layer_left_out_of_an_outside_model_is_left_out():
    model, given = joint(), arguments()
    perturbed = run(model, SLG(where=Where(blocks="1"), strength=-1.0), **given)
    model.layers = torch.nn.ModuleList([model.layers[0], model.layers[2]])
    torch.testing.assert_close(perturbed, model(**given)[0])


# ---------------------------------------------------------------- a loop of one's own


def midpoint(model: Any, latents: Tensor, steps: int, velocity: Any) -> Tensor:
    """x <- x + h v(x + h / 2 v(x)), from sigma 1 to 0."""
    for i in range(steps):
        now, after = 1 - i / steps, 1 - (i + 1) / steps
        half = latents + (after - now) / 2 * velocity(i, now, latents)
        latents = latents + (after - now) * velocity(i, (now + after) / 2, half)
    return latents


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_transformer, tiny_sd3_transformer], ids=["FLUX", "SD3"])
def test_a_midpoint_loop_on_a_bare_transformer_with_a_guide(build):
    """Every evaluation is guided: 2 steps are 4 evaluations and 4 perturbed passes, equal to passes made by hand."""
    model, g = build(), torch.Generator().manual_seed(3)
    flux = build is tiny_transformer
    shape, text = ((2, 16, 16) if flux else (2, 16, 8, 8)), torch.randn(2, 5, 16, generator=g)
    more: dict[str, Any] = {"encoder_hidden_states": text, "pooled_projections": torch.randn(2, 16, generator=g)}
    if flux:
        ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
        more |= {"img_ids": ids, "txt_ids": torch.zeros(5, 3)}
    start, guide = torch.randn(shape, generator=g), SoftPAG(where=Where(heads="L1H1 L2H3"), u=0.7, strength=2.5)
    calls = []

    def velocity(i: int, sigma: float, x: Tensor) -> Tensor:
        if session:
            session.at(i, of=2, sigma=sigma)
        timestep = torch.full((2,), sigma * (1 if flux else 1000))
        calls.append(sigma)
        return model(hidden_states=x, timestep=timestep, return_dict=False, **more)[0]

    def by_hand(i: int, sigma: float, x: Tensor) -> Tensor:
        nonlocal session
        cond = velocity(i, sigma, x)
        with attached(model, guide.model_copy(update={"strength": -1.0})) as session:
            worse = velocity(i, sigma, x)
        session = None
        return cond + 2.5 * (cond - worse)

    session: Any
    session = None
    expected, plain = midpoint(model, start, 2, by_hand), midpoint(model, start, 2, velocity)
    inside = []
    hook = model.transformer_blocks[1].register_forward_hook(lambda *_: inside.append(1))
    with attached(model, guide) as guided:
        session = guided
        found = midpoint(model, start, 2, velocity)
    hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 1e-3
    assert len(inside) == 8, "four evaluations, four perturbed passes"
    session = None
    with pytest.raises(ControlError, match=r"nobody says what step it is: session\.at"), attached(model, guide):
        velocity(0, 1.0, start)


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_flux, tiny_sd3], ids=["FLUX", "SD3"])
def test_a_hosts_velocity_in_a_loop_is_the_pipelines_own(build, latents_of):
    """Euler over `velocity` and `condition` gives what the pipeline's __call__ gives, controls included."""
    pipe = build()
    host, steps, control = host_of(pipe), 3, AlignedStyle()
    call: dict[str, Any] = {"n": 2, "steps": steps} | ({} if build is tiny_flux else {"guidance_scale": 1.0})
    with attached(pipe, control):
        expected = latents_of(pipe, **call)
    begin: list[Tensor] = []
    with attached(pipe, None):
        pipe.transformer.register_forward_pre_hook(
            lambda m, a, k: begin.append(k["hidden_states"].clone()), with_kwargs=True
        )
        latents_of(pipe, **call)
    sigmas, x = pipe.scheduler.sigmas, begin[0]
    condition = host.condition(["a fox", "a teapot"], 64, 64, max_sequence_length=12)
    with attached(pipe, control) as session:
        for i in range(steps):
            session.at(i, of=steps, sigma=sigmas[i])
            x = x + (sigmas[i + 1] - sigmas[i]) * host.velocity(x, sigmas[i], condition)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


def test_a_negative_pass_belongs_to_the_evaluation_before():
    model, given = joint(), arguments()
    guide = PAG(where=Where(blocks="1"), strength=2.0)
    with torch.no_grad(), attached(model, guide) as session:
        session.at(0, of=4, sigma=1.0)
        cond = model(**given)[0]
        session.at(0, of=4, sigma=1.0, conditional=False)
        uncond = model(**arguments(seed=5))[0]
    delta = cond - run(model, None, **given)
    torch.testing.assert_close(uncond - run(model, None, **arguments(seed=5)), delta)


def test_the_callers_clock_counts_evaluations_of_a_step():
    model, given, seen = joint(), arguments(), []

    class Noted(Isolated):
        def check(self, call: Call) -> None:
            seen.append((call.step.index, call.step.evaluation, call.step.call))

    with torch.no_grad(), attached(model, Noted()) as session:
        for step, conditional in ((0, True), (0, False), (0, True), (1, True), (0, True)):
            session.at(step, of=2, sigma=0.5, conditional=conditional)
            model(**given)
    assert seen == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]


# ---------------------------------------------------------------- a branch that replaces a row's own keys


class Isolated(Control):
    """The left half of the grid and the rest read only themselves and the text: own attention replaced by two groups."""

    kind: Literal["isolated"] = "isolated"

    def plan(self, call: Call) -> Effect:
        rows, columns = call.layout.grid
        left = [r * columns + c for r in range(rows) for c in range(columns // 2)]
        start, _ = call.layout.image
        groups = [left, [i for i in range(rows * columns) if i not in left]]
        text = list(range(*call.layout.text))
        return IsolatedEffect([call.index([start + i for i in group]) for group in groups], call.index(text))


class IsolatedEffect(Effect):
    def __init__(self, groups: Sequence[Tensor], text: Tensor) -> None:
        self.groups, self.text = groups, text

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        made = [(group, torch.cat([group, self.text])) for group in self.groups]
        made.append((self.text, torch.arange(at.layout.length)))
        tables = own.rotary
        return tuple(
            Branch(own.key[:, keys], own.value[:, keys], queries=queries, tokens=keys,
                   rotary=None if tables is None else (tables[0][keys], tables[1][keys]))
            for queries, keys in made
        ) + branches[1:]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_flux, tiny_sd3], ids=["FLUX", "SD3"])
def test_own_keys_replaced_equal_a_dense_mask_in_float64(build, latents_of):
    pipe = build()
    pipe.transformer.double()
    captured: list[tuple[dict[str, Any], Any]] = []
    hook = pipe.transformer.register_forward_hook(lambda m, a, k, o: captured.append((k, o)), with_kwargs=True)
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).double()
    with attached(pipe, Isolated()):
        latents_of(pipe, n=2, steps=1, height=32, width=48)
    hook.remove()
    given, found = captured[0][0], captured[0][1]
    flux = build is tiny_flux
    text = given["encoder_hidden_states"].shape[1]
    rows, columns = 4, 6
    group = torch.tensor([c < columns // 2 for r in range(rows) for c in range(columns)])
    image = torch.arange(24) + (text if flux else 0)
    mask = torch.ones(24 + text, 24 + text, dtype=torch.bool)
    mask[image[:, None], image[None]] = group[:, None] == group[None]
    stock = torch.nn.functional.scaled_dot_product_attention

    def masked(query: Tensor, key: Tensor, value: Tensor, *a: Any, **more: Any) -> Tensor:
        return stock(query, key, value, attn_mask=mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)  # SD3's way, and the dispatcher's
        dense = pipe.transformer(**given)[0]
    torch.testing.assert_close(found[0], dense, atol=1e-9, rtol=1e-9)
    assert (dense - pipe.transformer(**given)[0]).abs().max() > 1e-3


# ---------------------------------------------------------------- two transformers, words


class Two:
    """A pipeline with two transformers that take turns, as Wan 2.2 has."""

    def __init__(self) -> None:
        self.transformer, self.transformer_2 = joint(), joint()


def test_two_transformers_have_sites_of_their_own():
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe, given = Two(), arguments()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.scheduler.set_timesteps(2)
    assert [site.label for site in host_of(pipe).sites][::3] == [
        "transformer L0 (layer 0)",
        "transformer_2 L0 (layer 0)",
    ]
    with torch.no_grad(), attached(pipe, StyleAligned()) as session:
        first, second = pipe.transformer(**given)[0], pipe.transformer_2(**given)[0]
        assert "transformer_2" in repr(session)
    assert torch.equal(first, second)
    assert (first - run(pipe.transformer, None, **given))[1:].abs().max() > 1e-3
    for model in (pipe.transformer, pipe.transformer_2):
        assert type(model.layers[0].attention.processor).__name__ == "PlainProcessor"


class Muted(Control):
    """Words of the prompt that nobody reads: their columns closed for image queries."""

    kind: Literal["muted"] = "muted"
    word: str

    def plan(self, call: Call) -> Effect:
        rows = range(call.pictures)
        return MutedEffect({len(call.guests) + row: call.words(self.word, row) for row in rows})


class MutedEffect(Effect):
    def __init__(self, columns: Mapping[int, tuple[int, ...]]) -> None:
        self.columns = columns

    def branches(self, at: Features, own: Branch, branches: Branches) -> Branches:
        start, _ = at.layout.text
        bias = at.k.new_zeros(len(at.k), 1, 1, at.layout.length)
        for row, columns in self.columns.items():
            bias[row, ..., [start + column for column in columns]] = -torch.inf
        return (Branch(own.key, own.value, rotary=own.rotary, log_bias=bias),)


def test_a_control_can_name_words(latents_of):
    pipe = tiny_flux()
    stock = latents_of(pipe, n=2)
    with attached(pipe, Muted(word="fox"), prompts=["a fox", "a fox"]):
        assert (latents_of(pipe, n=2) - stock).abs().amax((1, 2)).min() > 1e-4
    with pytest.raises(ControlError, match="nobody says what the prompts are"), attached(pipe, Muted(word="fox")):
        latents_of(pipe, n=2)
    wrong = attached(pipe, Muted(word="owl"), prompts=["a fox", "a fox"])
    with pytest.raises(ControlError, match="no word 'owl' in the prompt"), wrong:
        latents_of(pipe, n=2)
