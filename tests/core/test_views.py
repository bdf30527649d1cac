"""The view phase: some image tokens alone run through the blocks."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from tiny import tiny_sd3_transformer, tiny_transformer
from torch import Tensor

from attnctrl import PAG, SEG, TPG, ControlError, Where, attached
from attnctrl.control import Call, Control
from attnctrl.effect import Effect


class Shown(Control):
    """Every third image token alone runs through the blocks."""

    kind: Literal["shown"] = "shown"
    attends = False

    def view(self, call: Call) -> Tensor | None:
        return call.index(range(0, call.layout.size, 3))

    def plan(self, call: Call) -> Effect:
        return Effect()


@torch.no_grad()
def test_a_view_is_the_model_on_those_tokens_alone():
    """FLUX: the same as calling it with the chosen tokens and their ids; others predict zeros; residuals go along."""
    model, g = tiny_transformer(), torch.Generator().manual_seed(3)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    given = {
        "hidden_states": torch.randn(2, 16, 16, generator=g), "encoder_hidden_states": torch.randn(2, 5, 16, generator=g),
        "pooled_projections": torch.randn(2, 16, generator=g), "timestep": torch.full((2,), 0.5), "txt_ids": torch.zeros(5, 3),
        "img_ids": ids, "controlnet_block_samples": [torch.randn(2, 16, 64, generator=g)], "return_dict": False,
    }  # fmt: skip
    chosen = torch.arange(0, 16, 3)
    few = {**given, "hidden_states": given["hidden_states"][:, chosen], "img_ids": ids[chosen],
           "controlnet_block_samples": [given["controlnet_block_samples"][0][:, chosen]]}  # fmt: skip
    lengths: list[int] = []
    hook = model.transformer_blocks[0].register_forward_pre_hook(
        lambda m, a, k: lengths.append(k["hidden_states"].shape[1]), with_kwargs=True
    )
    with attached(model, [Shown(), PAG(where=Where(blocks="1"))]) as session:
        session.at(0, of=1, sigma=0.5)
        found = model(**given)[0]
    with attached(model, PAG(where=Where(blocks="1"))) as session:
        session.at(0, of=1, sigma=0.5)
        expected = model(**few)[0]
    hook.remove()
    assert set(lengths) == {6}
    assert torch.equal(found[:, chosen], expected)
    others = [i for i in range(16) if i not in chosen.tolist()]
    assert not found[:, others].any()


@torch.no_grad()
def test_a_view_on_sd3_gathers_after_the_positions():
    """All tokens shown in order is the whole; a part of them sees only each other."""
    model, g = tiny_sd3_transformer("rms_norm", (0, 1)), torch.Generator().manual_seed(3)
    given = {
        "hidden_states": torch.randn(2, 16, 8, 8, generator=g), "encoder_hidden_states": torch.randn(2, 5, 16, generator=g),
        "pooled_projections": torch.randn(2, 16, generator=g), "timestep": torch.full((2,), 500.0), "return_dict": False,
        "block_controlnet_hidden_states": [torch.randn(2, 16, 64, generator=g)],
    }  # fmt: skip

    class Whole(Shown):
        def view(self, call: Call) -> Tensor | None:
            return call.index(range(call.layout.size))

    class Rowwise(Shown):
        def view(self, call: Call) -> Tensor | None:
            return call.index([[0, 5, 6], [0, 5, 7]])

    def run(control: Control | None, **more: Any) -> Tensor:
        with attached(model, control) as session:
            if session:
                session.at(0, of=1, sigma=0.5)
            return model(**{**given, **more})[0]

    stock = run(None)
    torch.testing.assert_close(run(Whole()), stock, atol=1e-6, rtol=1e-6)
    part = run(Rowwise())
    unseen = given["hidden_states"].clone()
    unseen[:, :, :, 6:] += 1  # the last column of tokens: 3, 7, 11, 15
    again = run(Rowwise(), hidden_states=unseen)
    assert torch.equal(again[0], part[0]), "row 0 shows none of them"
    assert (again[1] - part[1]).abs().max() > 1e-4
    filled = part.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum((1, 4, 5)).flatten(1) > 0
    assert filled[0].nonzero().flatten().tolist() == [0, 5, 6]
    assert filled[1].nonzero().flatten().tolist() == [0, 5, 7]


@pytest.mark.parametrize(("control", "says"), [(TPG(), "shuffle"), (SEG(sigma=1.0), "blur")])
def test_what_needs_the_whole_grid_refuses_a_view(control, says):
    model = tiny_transformer()
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    with attached(model, [Shown(), control]) as session:
        session.at(0, of=1, sigma=0.5)
        with pytest.raises(ControlError, match=says):
            model(hidden_states=torch.zeros(1, 16, 16), encoder_hidden_states=torch.zeros(1, 5, 16), timestep=torch.ones(1),
              pooled_projections=torch.zeros(1, 16), txt_ids=torch.zeros(5, 3), img_ids=ids)  # fmt: skip
