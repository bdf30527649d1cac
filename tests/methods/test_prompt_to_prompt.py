"""Prompt-to-prompt against a dense float64 map whose columns are put in from the source's."""

from __future__ import annotations

import pytest
import torch
from editing import CLOSE, GRID, LENGTH, SOURCE, At, Case
from references.attention import dense_attention
from references.prompt_to_prompt import edited_map, probabilities

from attnctrl import PromptToPrompt, Region, Where
from attnctrl.aligning import aligned_columns
from attnctrl.processors.attaching import host_of

MODELS = ("FLUX", "SD3", "SD3.5")
models = pytest.mark.parametrize("model", MODELS)
SOFT = Region(box=(0, 0, 0.5, 1), edge=1.0)


def pairs_of(case: Case, row: int) -> list[tuple[int, int]]:
    host = host_of(case.pipe)
    return list(
        aligned_columns(*(host.parts(said, max_sequence_length=LENGTH) for said in (SOURCE, case.prompts[row])))
    )


def site(case: Case, region: Region | None = None, heads: list[float] | None = None, strength: float = 1.0):
    """Rows [source, edits] of the last half; each edit's image tokens with the edited map."""
    share = torch.ones(1, 1, 1) if region is None else torch.tensor(region.weights(GRID))[:, None, None]
    gate = strength * (torch.ones(4) if heads is None else torch.tensor(heads))[:, None].double()

    def attention(at: At) -> torch.Tensor:
        q, k = at.rotate(at.q), at.rotate(at.k)
        out = dense_attention(q, k, at.v)
        if not at.joint:
            return out
        source = len(q) - 1 - len(case.prompts)
        for i in range(len(case.prompts)):
            row = source + 1 + i
            pairs = [(at.text.start + a, at.text.start + b) for a, b in pairs_of(case, i)]
            p, theirs = (probabilities(q[r, at.image], k[r]) for r in (row, source))
            new = torch.einsum("hqk,khd->qhd", edited_map(p, theirs, pairs), at.v[row])
            new = share.double() * new + (1 - share.double()) * out[source, at.image]
            out[row, at.image] = (1 - gate) * out[row, at.image] + gate * new
        return out

    return attention


CASES = {
    "replaced": ("a blue fox, flat", {}),
    "inserted": ("a red fox and a hat, flat", {}),
    "left out": ("a fox, flat", {}),
    "another prompt": ("one bear", {}),
    "half strength": ("a blue fox, flat", {"strength": 0.5}),
    "soft region": ("a blue fox, flat", {"region": SOFT}),
    "two heads": ("a blue fox, flat", {"heads": [0.0, 1.0, 0.0, 1.0]}),
}


@models
@pytest.mark.parametrize(("prompt", "more"), CASES.values(), ids=CASES)
def test_equals_the_dense_map(model, prompt, more):
    case = Case(model, prompts=(prompt,))
    expected = case.naive(site(case, **more))
    assert (expected - case.stock()).abs().max() > 1e-3, "the case shows nothing"
    given = {name: value for name, value in more.items() if name != "heads"}
    where = Where(heads="H1 H3" if "heads" in more else "all")
    torch.testing.assert_close(case.ours(PromptToPrompt(where=where, **given)), expected, **CLOSE)


@pytest.mark.parametrize("model", ["SD3", "SD3.5"])
def test_under_guidance_several_edits_each_by_its_own_words(model):
    case = Case(model, prompts=("a blue fox, flat", "a red fox on ice, flat"), guided=True)
    result = case.ours(PromptToPrompt())
    torch.testing.assert_close(result, case.naive(site(case)), **CLOSE)
    torch.testing.assert_close(result[:2], case.stock()[:2], **CLOSE)


@models
def test_zero_strength_is_bit_equal_and_later_steps_are_stock(model):
    case, later = Case(model, guests=0), Case(model, step=8)
    off = case.ours(PromptToPrompt(strength=0))
    assert torch.equal(off, case.stock())
    with pytest.warns(UserWarning, match="never acted"):
        torch.testing.assert_close(later.ours(PromptToPrompt()), later.stock(), **CLOSE)
    assert not case.pipe.transformer._forward_hooks
    assert all("Controlled" not in type(one).__name__ for one in case.pipe.transformer.attn_processors.values())


@models
def test_the_same_prompt_from_the_same_latents_is_the_source(model):
    """Every column is the source's and every value too: the map is the stock one."""
    case = Case(model, prompts=(SOURCE,))
    rows = case.inputs()
    rows["hidden_states"] = case.source.latents[case.step : case.step + 1]
    case.inputs = lambda with_source=False: rows  # type: ignore[method-assign]
    torch.testing.assert_close(case.ours(PromptToPrompt()), case.stock(), **CLOSE)
