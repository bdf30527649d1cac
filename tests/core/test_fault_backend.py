"""A chosen attention backend is used at every strength, not only where a control needs no bias."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry
from diffusers.models.attention_dispatch import attention_backend
from PIL import Image

from attnctrl import NAG, AlignedStyle, NaiveSharing, Reference, SoftPAG, StyleAligned, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
CHOSEN = "_native_math"
GOLD = Reference(picture=Image.new("RGB", (64, 64), "gold"), caption="a coin")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend of every call that reaches diffusers' registry, whoever dispatched it."""
    names: list[str] = []
    for backend, function in list(Registry._backends.items()):

        def watched(*args: Any, _of: Any = backend, _call: Any = function, **kwargs: Any) -> Any:
            names.append(_of.value)
            return _call(*args, **kwargs)

        monkeypatch.setitem(Registry._backends, backend, watched)
    return names


@pytest.fixture(params=["on the transformer", "as a context"])
def choosing(request: pytest.FixtureRequest) -> Any:
    """Chooses the backend in either of diffusers' ways, for the length of a with-block."""

    def choose(pipe: Any) -> Any:
        if request.param == "as a context":
            return attention_backend(CHOSEN)
        pipe.transformer.set_attention_backend(CHOSEN)
        return nullcontext()

    before = Registry.get_active_backend()[0]
    yield choose
    Registry.set_active_backend(before)


EVERY = Where(blocks="all")
BIASED = {
    "strength .5": (AlignedStyle(where=EVERY), {"strength": 0.5}),
    "strength 2": (StyleAligned(), {"strength": 2.0}),
    "two heads": (NaiveSharing(where=EVERY), {"where": Where(blocks="all", heads="H1 H3")}),
    "one head of one block": (NaiveSharing(where=EVERY), {"where": Where(blocks="all", heads="L3H2")}),
    "two heads, strength .5": (AlignedStyle(where=EVERY), {"strength": 0.5, "where": Where(blocks="all", heads="H1 H3")}),
    "shared by all, strength .5": (NaiveSharing(where=EVERY, share="all"), {"strength": 0.5}),
    "a picture, strength .5": (AlignedStyle(where=EVERY, reference=GOLD), {"strength": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize(("control", "change"), BIASED.values(), ids=BIASED.keys())
@pytest.mark.parametrize("cfg", [1.0, 2.0], ids=["", "CFG"])
def test_a_bias_asks_the_chosen_backend_as_often_as_none(control, change, cfg, pipe, latents_of, asked, choosing):
    run = partial(latents_of, pipe, steps=2, cfg=cfg)
    biased = type(control)(**{**{name: getattr(control, name) for name in control.model_fields_set}, **change})
    with attached(pipe, biased):
        expected = run()
    with choosing(pipe):
        del asked[:]
        with attached(pipe, control):
            run()
        plain = list(asked)
        del asked[:]
        with attached(pipe, biased):
            result = run()
    assert set(plain) == {CHOSEN}
    assert set(asked) == {CHOSEN}
    sites, calls = len(pipe.transformer.attn_processors), 2 if cfg == 1 else 4
    assert len(plain) >= sites * calls
    if change.get("where", EVERY).heads == "L3H2":
        assert len(asked) >= sites * calls, "stock sites, and the one that is touched"
    else:
        assert len(asked) == len(plain)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


TOGETHER = {
    "two branches": [NaiveSharing(where=EVERY), NaiveSharing(where=EVERY, shift=(0, 1))],
    "two pictures": [AlignedStyle(where=EVERY, reference=(GOLD, GOLD.model_copy(update={"seed": 3, "strength": 0.5})))],
    "NAG at half strength": [AlignedStyle(where=EVERY, strength=0.5), NAG(prompt="an owl")],
    "SoftPAG at half strength": [AlignedStyle(where=EVERY, strength=0.5), SoftPAG(where=Where(heads="L1H1 L3H2"))],
    "SEG's other queries": [AlignedStyle(where=EVERY, strength=0.5), SoftPAG(where=Where(heads="L3H2"), target="query-mean")],
}  # fmt: skip


@pytest.mark.parametrize("controls", TOGETHER.values(), ids=TOGETHER.keys())
def test_own_attention_asks_the_chosen_backend_in_every_composition(controls, pipe, latents_of, asked, choosing):
    """At least once a site and pass; diffusers' default is not asked instead."""
    run = partial(latents_of, pipe, steps=2)
    with attached(pipe, controls):
        expected = run()
    with choosing(pipe), attached(pipe, controls):
        del asked[:]
        result = run()
    assert set(asked) == {CHOSEN}
    assert len(asked) >= 2 * len(pipe.transformer.attn_processors)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_a_dense_backend_is_asked_for_no_mask_of_attention_size(pipe, latents_of, monkeypatch):
    """What goes to the backend is at most a bias per key: [B or 1, H or 1, 1, S]."""
    backend = next(one for one in Registry._backends if one.value == CHOSEN)
    call, shapes = Registry._backends[backend], []

    def watched(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("attn_mask") is not None:
            shapes.append(tuple(kwargs["attn_mask"].shape))
        return call(*args, **kwargs)

    monkeypatch.setitem(Registry._backends, backend, watched)
    pipe.transformer.set_attention_backend(CHOSEN)
    for control in (AlignedStyle(strength=0.5), NaiveSharing(where=Where(heads="H1 H3"))):
        with attached(pipe, control):
            latents_of(pipe, steps=1)
    assert all(len(shape) == 4 and shape[2] == 1 for shape in shapes)
