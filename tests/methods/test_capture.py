"""What `open_source` keeps of a run: the attention to words against dense float64 softmax, and the latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from test_branches import LISTS, OWN, B, H, Q, S, dense
from test_observing import CALL, GRID, IMAGE, models
from test_observing import dense as stock_maps
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import (
    AlignedStyle,
    ControlError,
    ControlledFluxPipeline,
    ControlledStableDiffusion3Pipeline,
    Reference,
    Region,
    attached,
    open_source,
)
from attnctrl.branch import Blend, Branch, Branches
from attnctrl.effect import Attended
from attnctrl.layout import Layout
from attnctrl.processors.capture import Capture, attention_on

PIPES: dict[str, Any] = {
    "FLUX": lambda: tiny_flux(cls=ControlledFluxPipeline),
    "SD3": lambda: tiny_sd3(cls=ControlledStableDiffusion3Pipeline),
    "SD3.5": lambda: tiny_sd3(qk_norm="rms_norm", dual=(0, 1), cls=ControlledStableDiffusion3Pipeline),
}
PROMPT = "a fox, a red fox"
LATE = {"FLUX": (2, 3, 4), "SD3": (1, 2), "SD3.5": (2, 4)}
"""The late sites that see text, as they come."""
GUIDANCE: dict[str, dict[str, Any]] = {
    "FLUX": {"true_cfg_scale": 2.0, "negative_prompt": "a rag"},
    "SD3": {"guidance_scale": 3.0, "negative_prompt": "a rag"},
}


def marked(branches: Branches) -> Branches:
    """The same branches with the tokens' own unit vectors as values, of S channels; zeros for keys of elsewhere."""
    unit = torch.eye(S, dtype=torch.float64)[None, :, None].expand(B, -1, H, -1)

    def one(branch: Branch) -> Branch:
        rows = torch.arange(B) if branch.rows is None else branch.rows.index
        if branch.key is OWN.key:
            value = unit[rows]
        elif branch.tokens is not None:
            value = unit[:, branch.tokens][rows]
        else:
            value = torch.zeros(len(rows), branch.key.shape[1], H, S, dtype=torch.float64)
        names = ("key", "rows", "queries", "log_bias", "mask")
        return Branch(value=value, **{name: getattr(branch, name) for name in names})

    return tuple(
        Blend(tuple(one(part) for part in x.branches), x.amount) if isinstance(x, Blend) else one(x)  # type: ignore[arg-type]
        for x in branches
    )


@pytest.mark.parametrize("row", range(B))
@pytest.mark.parametrize("name", LISTS)
def test_the_attention_on_tokens_counts_every_branch(name, row):
    """All 11 tokens, which are more than values are wide: the shared keys of others are in the softmax's sum."""
    expected = dense(Q, marked(LISTS[name]))
    layout = Layout.of((("text", 2), ("image", 9)), (3, 3))
    at = Attended(Q, OWN.key, OWN.value, layout, None, None, None, None, LISTS[name])  # type: ignore[arg-type]
    found = attention_on(at, row, torch.arange(S))
    assert found.shape == (9, H, S)
    torch.testing.assert_close(found.double(), expected[row, 2:], atol=2e-6, rtol=2e-6)


# ---------------------------------------------------------------- whole runs

FOUND = {
    "FLUX": {"fox": [2, 3, 4, 5, 13, 14, 15, 16], "red fox": [9, 10, 11, 12, 13, 14, 15, 16], "A": [0, 1, 7, 8]},
    "SD3": {"fox": [2, 3, 4, 10, 11, 12], "red fox": [7, 8, 9, 10, 11, 12], "A": [1, 6]},
}
"""Columns of one encoder, counted by hand: a piece a letter, T5's spaces are pieces of their word."""
LENGTH = 24


def columns(model: str, word: str) -> list[int]:
    """In all of the text: SD3's CLIP columns, and T5's behind them."""
    t5 = FOUND["FLUX"][word]
    return t5 if model == "FLUX" else FOUND["SD3"][word] + [32 + column for column in t5]


@pytest.mark.parametrize("guided", [False, True], ids=["", "CFG"])
@models
def test_words_equal_the_dense_softmax_and_the_picture_is_bit_equal(model, guided, monkeypatch):
    """Mean over heads, late blocks and steps of the conditional row's shares, padding in the sum; all pieces added."""
    flux = model == "FLUX"
    more = GUIDANCE["FLUX" if flux else "SD3"] if guided else {} if flux else {"guidance_scale": 1.0}
    call = {**CALL, "max_sequence_length": LENGTH, **more}
    pipe = PIPES[model]()
    calls, pictures = stock_maps(pipe, [PROMPT], {**call, "generator": torch.Generator().manual_seed(4)}, monkeypatch)
    opened = open_source(pipe, PROMPT, seed=4, **call)
    assert opened.image.tobytes() == pictures[0].tobytes()
    assert opened.source.steps == 2
    assert not pipe.transformer._forward_hooks | pipe.transformer._forward_pre_hooks
    calls = calls[::2] if flux and guided else calls
    assert len(calls) == 2
    image = slice(LENGTH, None) if flux else slice(0, IMAGE)
    seen = torch.stack([p[-1, :, image] for sites in calls for p in (sites[place] for place in LATE[model])])
    mean = seen.mean((0, 1))
    assert seen.shape[0] == 2 * len(LATE[model])
    for word in FOUND["SD3"]:
        expected = mean[:, [(0 if flux else IMAGE) + column for column in columns(model, word)]].sum(-1)
        assert expected.std() > 1e-4, "the case does not tell places apart"
        torch.testing.assert_close(opened.source.map(word).double(), expected, atol=2e-6, rtol=1e-4)


def test_a_region_of_words_is_a_threshold_of_their_map():
    pipe = PIPES["FLUX"]()
    opened = open_source(pipe, PROMPT, **CALL)
    values = opened.source.map("fox")
    found = Region(words="fox", threshold=0.5).weights(GRID, opened.source.find)
    middle = (values.min() + values.max()) / 2
    assert found == (values > middle).float().tolist()
    assert 0 < sum(found) < IMAGE
    with pytest.raises(ControlError, match=r"no word 'owl' in the prompt; its words are a, fox, red"):
        opened.source.map("owl")


GOLD = Reference(picture=Image.new("RGB", (64, 48), "gold"), caption="a coin")


@pytest.mark.parametrize("model", ["FLUX", "SD3"])
def test_shared_keys_count_in_the_sum(model):
    """Beside AlignedStyle's picture the words' share is what the joined softmax leaves them."""
    pipe, call = PIPES[model](), {**CALL, "max_sequence_length": LENGTH, "num_inference_steps": 1}
    call |= {} if model == "FLUX" else {"guidance_scale": 1.0}
    text = range(LENGTH) if model == "FLUX" else range(32 + LENGTH)
    style = AlignedStyle(reference=GOLD)
    kept: list[Tensor] = []

    class Kept(Capture):
        def plan(self, call: Any) -> Any:
            effect = super().plan(call)
            real = effect._read

            def read(at: Attended) -> None:
                kept.append(_by_hand(at, effect.row, effect.columns))
                real(at)

            object.__setattr__(effect, "_read", read)
            return effect

    watch = Kept(columns=tuple(text))
    with attached(pipe, [style, watch]) as session:
        pipe([PROMPT], **call, generator=torch.Generator().manual_seed(4), output_type="latent")
        found = session.recorded(watch)
    assert found.count == len(kept) == len(LATE[model])
    torch.testing.assert_close(found.total.double(), torch.stack(kept).sum(0), atol=1e-5, rtol=1e-4)


def _by_hand(at: Attended, row: int, chosen: Tensor) -> Tensor:
    """The softmax over own and shared keys, joined; [columns, S_img], mean over heads."""
    start, stop = at.layout.image
    _, shared = at.branches
    keys = torch.cat([at.k[row], shared.key[shared.rows.numbers.index(row)]]).double()  # type: ignore[union-attr]
    assert len(keys) > at.k.shape[1]
    logits = torch.einsum("qhd,khd->hqk", at.q[row, start:stop].double(), keys) / at.q.shape[-1] ** 0.5
    return torch.softmax(logits, -1)[..., chosen].mean(0).T


def test_the_latents_of_every_step_are_kept_and_no_more():
    """[steps + 1, ...] as the transformer takes them; bytes are said."""
    pipe, seen = PIPES["SD3"](), []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"][-1].clone()), with_kwargs=True
    )
    opened = open_source(pipe, PROMPT, seed=1, guidance_scale=3.0, **CALL)
    hook.remove()
    assert torch.equal(opened.source.latents[:-1], torch.stack(seen))
    words = len(opened.source.columns)
    latents = 3 * seen[0].numel()
    assert opened.source.nbytes == 4 * (latents + words * IMAGE)
    assert opened.nbytes == opened.source.nbytes + 48 * 64 * 3
