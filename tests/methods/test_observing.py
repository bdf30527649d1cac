"""Observed attention against dense float64 softmax on the stock pipelines; pictures bit-equal; what it costs and refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_attention import Shapes
from tiny import tiny_flux, tiny_sd3

from attnctrl import (
    Observe,
    attached,
    observe,
)
from attnctrl.branch import Branch, Rows
from attnctrl.effect import Attended
from attnctrl.layout import Layout
from attnctrl.processors.observing import STATISTICS, observed

MODELS = {
    "FLUX": tiny_flux,
    "SD3": tiny_sd3,
    "SD3.5": lambda: tiny_sd3(qk_norm="rms_norm", dual=(0, 1)),
}
models = pytest.mark.parametrize("model", MODELS)
CALL = {"num_inference_steps": 2, "height": 48, "width": 64, "max_sequence_length": 12}
GRID, IMAGE = (6, 8), 48


def options(model: str, guided: bool, n: int = 1) -> dict[str, Any]:
    scale = {"true_cfg_scale": 2.0, "negative_prompt": ["a rag"] * n} if model == "FLUX" else {"guidance_scale": 3.0}
    off = {} if model == "FLUX" else {"guidance_scale": 1.0}
    return {**CALL, "generator": [torch.Generator().manual_seed(i) for i in range(n)], **(scale if guided else off)}


def dense(pipe: Any, prompts: list[str], call: dict[str, Any], monkeypatch) -> tuple[list[list[torch.Tensor]], Any]:
    """Stock run: attention probabilities [B, H, S, S] in float64 by transformer call and site; and the pictures."""
    calls: list[list[torch.Tensor]] = []
    inside = []

    def seen(q: torch.Tensor, k: torch.Tensor) -> None:
        if inside:
            logits = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
            calls[-1].append(torch.softmax(logits, -1))

    kernel = torch.nn.functional.scaled_dot_product_attention

    def own(query, key, value, *rest, **more):
        seen(query, key)
        return kernel(query, key, value, *rest, **more)

    def begin(*_: Any) -> None:
        calls.append([])
        inside.append(True)

    hooks = [
        pipe.transformer.register_forward_pre_hook(begin),
        pipe.transformer.register_forward_hook(lambda *_: inside.clear()),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", own)
        pictures = pipe(prompts, **call).images
    for hook in hooks:
        hook.remove()
    return calls, pictures


def numbers(p: torch.Tensor, text: slice, image: slice, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The statistics [H] of probabilities p [H, S_img, S], token by token."""
    heads, queries, keys = p.shape
    entropy, distance, near = torch.zeros(3, heads, queries, dtype=torch.float64)
    for q in range(queries):
        entropy[:, q] = -(p[:, q] * p[:, q].log()).sum(-1) / math.log(keys)
        for t in range(queries):
            down, across = t // grid[1] - q // grid[1], t % grid[1] - q % grid[1]
            mass = p[:, q, image][:, t]
            distance[:, q] += mass * math.sqrt(down**2 + across**2) / grid[1] / p[:, q, image].sum(-1)
            near[:, q] += mass * (max(abs(down), abs(across)) <= 1)
    parts = {"text": p[..., text].sum(-1), "image": p[..., image].sum(-1), "shared": 0 * entropy}
    return {k: v.mean(-1) for k, v in {**parts, "entropy": entropy, "distance": distance, "near": near}.items()}


@pytest.mark.parametrize(("guided", "n", "row"), [(False, 1, 0), (True, 1, 0), (True, 2, 1), (False, 3, 2)])
@models
def test_maps_and_statistics_equal_dense_and_pictures_are_bit_equal(model, guided, n, row, monkeypatch):
    """The chosen picture's conditional row: SD3's second half of the batch, FLUX's first pass."""
    pipe, prompts = MODELS[model](), ["a fox", "an owl", "a fox"][:n]
    before = pipe.transformer.attn_processors
    calls, pictures = dense(pipe, prompts, options(model, guided, n), monkeypatch)
    found = observe(pipe, prompts, ["owl" if row == 1 else "fox"], row=row, **options(model, guided, n))
    assert [a.tobytes() for a in found.images] == [b.tobytes() for b in pictures]
    assert found.image is found.images[row]
    after = pipe.transformer.attn_processors
    assert all(after[name] is one for name, one in before.items())
    assert not pipe.transformer._forward_hooks | pipe.transformer._forward_pre_hooks

    flux = model == "FLUX"
    assert len(calls) == (4 if flux and guided else 2)
    calls = calls[::2] if flux and guided else calls
    line = row + (n if guided and not flux else 0)
    image = slice(12, 12 + IMAGE) if flux else slice(0, IMAGE)
    columns = torch.tensor(found.columns[0]) + (0 if flux else IMAGE)
    assert found.steps == (0, 1)
    assert found.grid == GRID
    assert len(found.blocks) == len(calls[0]) == {"FLUX": 5, "SD3": 3, "SD3.5": 5}[model]
    for step, sites in enumerate(calls):
        for place, probabilities in enumerate(sites):
            p = probabilities[line][:, image]
            maps = found.maps[step, place, 0]
            if p.shape[-1] == IMAGE:
                assert "dual" in found.blocks[place]
                assert np.isnan(maps).all()
            else:
                expected = p[..., columns].sum(-1).unflatten(-1, GRID)
                assert expected.std() > 1e-3, "the case does not tell places apart"
                np.testing.assert_allclose(maps, expected, atol=2e-6, rtol=1e-4)
            text = slice(0, 12) if flux else slice(IMAGE, None)
            if n == 1 and step == 1:
                for name, value in numbers(p, text, image, GRID).items():
                    ours = found.statistics[name][step, place]
                    np.testing.assert_allclose(ours, value, atol=2e-5, err_msg=name)


@models
def test_all_text_columns_and_the_image_make_one(model):
    pipe = MODELS[model]()
    length = 12 if model == "FLUX" else 44
    watch = Observe(tokens=tuple((c,) for c in range(length)), size=None)
    with attached(pipe, watch) as session:
        pipe(["a fox"], **options(model, True))
        recording = session.recorded(watch)
    assert len(recording.seen) == 2 * len(recording.sites)
    for one in recording.seen.values():
        text, image, shared = one.statistics[:3]
        torch.testing.assert_close(text + image + shared, torch.ones(4))
        if one.maps is None:
            assert (text == 0).all()
        else:
            assert one.maps.shape == (length, 4, *GRID)
            torch.testing.assert_close(one.maps.sum(0).mean((-1, -2)), text)


# ---------------------------------------------------------------- the arithmetic, by hand

LAYOUT = Layout.of((("text", 2), ("image", 6)), (2, 3))


def at(q: torch.Tensor, k: torch.Tensor, branches: tuple[Branch, ...] = (), layout: Layout = LAYOUT) -> Attended:
    return Attended(q, k, k, layout, None, None, None, None, (Branch(k, k), *branches))  # type: ignore[arg-type]


def statistics(*given: Any, **more: Any) -> dict[str, list[float]]:
    return {name: [round(x, 5) for x in row] for name, row in zip(STATISTICS, observed(*given, **more)[1].tolist(), strict=True)}  # fmt: skip


def test_statistics_of_uniform_and_of_own_token_attention():
    nothing = torch.zeros(1, 8, 1, 8)
    middle = (0 + 1 + 1 + 1 + math.sqrt(2) + math.sqrt(2)) / 6 / 3
    corner = (0 + 1 + 2 + 1 + math.sqrt(2) + math.sqrt(5)) / 6 / 3
    expected = {
        "text": 2 / 8, "image": 6 / 8, "shared": 0, "entropy": 1,
        "distance": (2 * middle + 4 * corner) / 6, "near": (2 * 6 + 4 * 4) / 6 / 8,
    }  # fmt: skip
    assert statistics(at(nothing, nothing), 0, (0,), ()) == {k: [round(float(v), 5)] for k, v in expected.items()}
    own = 60 * torch.eye(8).reshape(1, 8, 1, 8)
    expected = {"text": 0, "image": 1, "shared": 0, "entropy": 0, "distance": 0, "near": 1}
    assert statistics(at(own, own), 0, (0,), ()) == {k: [float(v)] for k, v in expected.items()}


def test_shared_keys_join_the_denominator():
    """Two branches of which row 2 reads the first with a bias, closed for head 1, and the second plainly; chosen heads."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 8, 3, 4, generator=g) for _ in range(2))
    first, second = torch.randn(2, 5, 3, 4, generator=g), torch.randn(1, 4, 3, 4, generator=g)
    bias = torch.tensor([0.7, -torch.inf, 0.0])
    branches = (
        Branch(first, first, Rows.chosen((1, 2), 3), log_bias=bias.reshape(3, 1, 1)),
        Branch(second, second, Rows.chosen((2,), 3)),
    )
    maps, found = observed(at(q, k, branches), 2, (0, 1), ((1,), (0, 1)))
    for place, head in enumerate((0, 1)):
        keys = torch.cat([k[2], first[1], second[0]])[:, head].double()
        logits = q[2, 2:, head].double() @ keys.T / 2
        logits[:, 8:13] += bias[head]
        p = torch.softmax(logits, -1)
        torch.testing.assert_close(maps[0, place].flatten().double(), p[:, 1], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(maps[1, place].flatten().double(), p[:, :2].sum(-1), atol=1e-6, rtol=1e-5)
        entropy = -(p * p.clamp(min=1e-300).log()).sum(-1).mean() / math.log(17 if head == 0 else 12)
        expected = torch.stack([p[:, :2].sum(-1).mean(), p[:, 2:8].sum(-1).mean(), p[:, 8:].sum(-1).mean(), entropy])
        torch.testing.assert_close(found[:4, place].double(), expected, atol=1e-6, rtol=1e-5)
    plain, _ = observed(at(q, k), 2, (0, 1), ((1,),))
    untouched, _ = observed(at(q, k, branches[1:]), 1, (0, 1), ((1,),))
    assert torch.equal(untouched, observed(at(q, k), 1, (0, 1), ((1,),))[0])
    assert (maps[:1] - plain).abs().max() > 1e-2


def test_condition_images_count_as_shared():
    layout = Layout.of((("text", 2), ("image", 3), ("condition", 3)), (1, 3))
    assert statistics(at(*[torch.zeros(1, 8, 1, 8)] * 2, layout=layout), 0, (0,), ())["shared"] == [3 / 8]


def test_nothing_of_attention_size_is_made(pipe):
    text, image = 12, 15 * 20
    watch = Observe(tokens=((1, 2), (3,)))
    with attached(pipe, watch) as session, Shapes() as shapes:
        pipe("a fox", num_inference_steps=1, height=120, width=160, max_sequence_length=text, output_type="latent")
        assert session.recorded(watch).seen
    wide = {image, text + image}
    assert not [s for s in shapes.seen if len(s) >= 2 and s[-1] in wide and s[-2] in wide]
    assert any(s[-2:] == (64, text + image) for s in shapes.seen if len(s) > 1), "the watch saw nothing"
    assert any(s[-2:] == (image % 64, text + image) for s in shapes.seen if len(s) > 1), "the last chunk"
