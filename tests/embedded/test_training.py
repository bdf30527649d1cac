"""Training of the embedded models: the same weights whether stopped or not, recipes that read, models that export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="the embedded world is drawn with opencv: install attnctrl[train]")

from diffusers import DiffusionPipeline
from test_embedded import drawings

from attnctrl.embedded import MODELS, model_folder
from attnctrl.embedded.export import export_run
from attnctrl.embedded.latents import CHANNELS
from attnctrl.embedded.muon import split
from attnctrl.embedded.sampling import sample
from attnctrl.embedded.training import NETS, RECIPES, Run, Stage, TrainConfig


def config(model: str, steps: int = 4, **more) -> TrainConfig:
    stages = (
        {"world": "first", "steps": 2, "batch": 3, "pictures": 70},
        {"world": "wider", "steps": steps - 2, "batch": 2, "pictures": 140},
    )
    options = {"warmup": 1, "cooldown": 2, "teach_steps": 2, "sheet_steps": 1, "compiled": False}
    return TrainConfig(model=model, stages=stages, **{**options, **more})


@pytest.fixture(scope="module")
def artwork(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("artwork") / "artwork.npz"
    np.savez(path, **drawings())
    return path


@pytest.mark.parametrize("model", NETS)
def test_a_run_that_was_stopped_gives_the_same_weights(model, artwork, tmp_path):
    data = tmp_path / "data"
    whole = Run(tmp_path / "whole", data, artwork, config(model), start=model_folder("tiny-flux"))
    whole.train()
    Run(tmp_path / "parts", data, artwork, config(model), start=model_folder("tiny-flux")).train(until=2)
    second = Run(tmp_path / "parts", data, artwork, config(model))
    assert second.step == 2
    second.train()
    assert second.step == whole.step == 4
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    assert (tmp_path / "whole" / "sheet-000004.png").stat().st_size > 10_000


@pytest.mark.parametrize("model", NETS)
def test_a_run_becomes_a_folder_that_stock_diffusers_loads(model, artwork, tmp_path):
    run = Run(tmp_path / "run", tmp_path / "data", artwork, config(model), start=model_folder("tiny-flux"))
    assert not any(p.requires_grad for encoder in (run.net.t5, *run.net.clips()) for p in encoder.parameters())
    run.train(until=1)
    assert export_run(tmp_path / "run", tmp_path / "out")["step"] == 1
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    sampling = json.loads((tmp_path / "out" / "attnctrl.json").read_text())
    assert pipe("a fox, comic", **{**sampling, "num_inference_steps": 1}).images[0].size == (64, 64)
    pictures = sample(run.average, run.tokens, ["a fox, comic", "a key"], (80, 48), steps=2)
    assert pictures.shape == (2, CHANNELS, 12, 20)


def test_positions_move_by_the_origin(artwork, tmp_path):
    """SD3's crop moves without a trace on the table; a whole grid aside is another picture, back again the same."""
    net = Run(tmp_path / "run", tmp_path / "data", artwork, config("tiny-sd3"), start=model_folder("tiny-flux")).net
    x, ids = torch.randn(1, 16, 16, 16), torch.ones(1, 24, dtype=torch.int64)
    with torch.no_grad():
        here, there, again = (net(x, torch.ones(1), ids, ids, origin) for origin in ((0, 0), (0, 8), (0, 0)))
        table = net.transformer.pos_embed.pos_embed.view(1, 48, 48, -1)
        net.transformer.pos_embed.pos_embed = torch.roll(table, -8, 2).reshape(1, 48 * 48, -1)
        rolled = net(x, torch.ones(1), ids, ids)
    assert torch.equal(here, again)
    assert (here - there).abs().max() > 1e-3
    assert torch.equal(rolled, there)


def test_the_rate_rises_stays_and_falls():
    plan = config("tiny-flux", steps=100, warmup=10, cooldown=20, peak=1.0)
    rates = [plan.rate(step) for step in (0, 4, 9, 50, 80, 90, 99, 100)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05, 0.0])
    assert [plan.samples(step) for step in (0, 1, 2, 100)] == [0, 3, 6, 202]
    assert [plan.stage(step).world for step in (0, 1, 2, 500)] == ["first", "first", "wider", "wider"]
    more = plan.model_copy(update={"stages": (*plan.stages, Stage(world="wider", steps=10, rates=(0.6, 0.0)))})
    assert [more.rate(step) for step in (0, 50, 90, 99)] == pytest.approx([0.1, 1.0, 0.5, 0.05])
    assert [more.rate(step) for step in (100, 105, 109)] == pytest.approx([0.6, 0.3, 0.06])


@pytest.mark.parametrize("model", MODELS)
def test_shipped_recipes_are_read_and_matrices_go_to_muon(model):
    recipe = TrainConfig.model_validate_json((RECIPES / f"{model}.json").read_text())
    assert recipe.model == model
    matrices, rest = split(NETS[model](shipped_tokens()))
    assert sum(p.numel() for p in matrices) > 0.8 * sum(p.numel() for p in matrices + rest)


def shipped_tokens():
    from attnctrl.embedded.model import Tokens

    return Tokens.load(model_folder("tiny-flux"))
