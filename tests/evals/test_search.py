"""The head search: equal to a plain greedy loop, resumed and shared between processes without a change."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_flux, tiny_sd3

from attnctrl import ControlError, SoftPAG, Where, controlled
from attnctrl.evals.heads.drawing import Drawing, Shot, pool
from attnctrl.evals.heads.search import Search, SearchConfig, as_json
from attnctrl.evals.ledger import Ledger

PROMPTS = ("a fox", "a key")


def make(build=tiny_sd3):
    stock = build()
    pipe = controlled(type(stock))(**stock.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Bright:
    """Mean lightness; stops when it has been asked `stop` times."""

    name = "bright"

    def __init__(self, stop: int = 10**9) -> None:
        self.left = stop

    def __call__(self, images, prompts):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return [float(np.asarray(image, float).mean()) for image in images]


class Red(Bright):
    name = "red"

    def __call__(self, images, prompts):
        return [float(np.asarray(image, float)[..., 0].mean()) for image in images]


def config(**more) -> SearchConfig:
    options = {"model": "tiny", "objectives": ("bright",), "prompts": PROMPTS, "rounds": 2, "top_k": 1,
               "batch_size": 4, "num_inference_steps": 2, "height": 64, "width": 64, "where": Where(blocks="1")}  # fmt: skip
    return SearchConfig(**{**options, **more})


def search(folder, pipe=None, objectives=None, **more):
    objectives = objectives or {"bright": Bright()}
    return Search(pipe or make(), config(objectives=tuple(objectives), **more), objectives, folder)


@pytest.mark.parametrize("build", [tiny_sd3, tiny_flux], ids=["SD3", "FLUX"])
def test_it_is_the_greedy_loop_of_the_paper(build, tmp_path):
    pipe = make(build)
    hunt = search(tmp_path, pipe, seeds=(0, 1))
    found = hunt.run()["bright"]
    off = {"true_cfg_scale": 1.0} if build is tiny_flux else {"guidance_scale": 1.0}

    def bright(heads):
        values = []
        for seed in (0, 1):
            for prompt in PROMPTS:
                control = SoftPAG(where=Where(heads=",".join(heads)), u=1.0, strength=3.0) if heads else None
                generator = torch.Generator().manual_seed(seed)
                size = {"num_inference_steps": 2, "height": 64, "width": 64}
                image = pipe(prompt, control=control, generator=generator, **size, **off).images[0]
                values.append(np.asarray(image, float).mean())
        return np.array(values)

    plain, have, every = bright([]), [], {}
    for one in found:
        gains = {}
        for block, head in pool(pipe, Where(blocks="1")):
            if (block, head) not in have:
                gaps = bright([f"L{b}H{h}" for b, h in [*have, (block, head)]]) - plain
                gains[block, head] = gaps.mean(), gaps.std(ddof=1) / 4**0.5
        every |= {tuple(sorted([*have, head])): gain for head, (gain, _) in gains.items()}
        have.append(max(gains, key=lambda h: gains[h][0]))
        assert one.chosen == tuple(have)
        assert one.gains.keys() == gains.keys()
        for head, value in gains.items():
            assert one.gains[head] == pytest.approx(value, abs=0.05)
    heads, gain, _ = hunt.best("bright")
    assert heads == ",".join(f"L{b}H{h}" for b, h in max(every, key=every.__getitem__))
    assert gain == pytest.approx(max(every.values()), abs=0.05)


def test_a_killed_search_goes_on_to_the_same_result(tmp_path):
    whole = as_json(search(tmp_path / "whole").run())
    for stop in (1, 1, 1):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "parts", objectives={"bright": Bright(stop)}).run()
        torn = tmp_path / "parts" / "results-0.jsonl"
        torn.write_bytes(torn.read_bytes() + b'{"id": "half a li')
    again = search(tmp_path / "parts")
    done = len(again.ledger.done)
    assert done > 2
    assert as_json(again.run()) == whole
    assert (tmp_path / "parts" / "results-0.jsonl").read_bytes() == (
        tmp_path / "whole" / "results-0.jsonl"
    ).read_bytes()
    drawn = Bright()
    assert as_json(search(tmp_path / "parts", objectives={"bright": drawn}).run()) == whole
    assert drawn.left == 10**9, "nothing is drawn twice"


def test_two_processes_find_the_same(tmp_path):
    alone = as_json(search(tmp_path / "alone", objectives={"bright": Bright(), "red": Red()}).run())
    gate, found = threading.Barrier(2), {}

    pipes = [make(), make()]

    def process(rank):
        hunt = search(tmp_path / "both", pipes[rank], objectives={"bright": Bright(), "red": Red()})
        hunt.ledger.rank = rank
        hunt.state = SimpleNamespace(num_processes=2, process_index=rank, wait_for_everyone=lambda: gate.wait(60))
        found[rank] = as_json(hunt.run())

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == alone
    assert all((tmp_path / "both" / f"results-{rank}.jsonl").stat().st_size > 0 for rank in (0, 1))


def test_halving_asks_for_fewer_pictures(tmp_path):
    counts = {}
    for halving in (False, True):
        counted = Bright()
        hunt = search(
            tmp_path / str(halving), objectives={"bright": counted}, seeds=(0, 1), halving=halving, batch_size=1
        )
        rounds = hunt.run()["bright"]
        counts[halving] = 10**9 - counted.left
        assert counts[halving] <= hunt.expected()
        assert len(rounds[-1].chosen) == 2
    assert counts[True] < 0.9 * counts[False]


def test_rows_of_a_batch_have_heads_of_their_own():
    pipe, drawing = make(), Drawing(3.0, 1.0, True, 8, 2, 64, 64)
    shots = [Shot("L1H0", "a fox", 0), Shot("", "a fox", 0), Shot("L1H0,L2H1", "a key", 1), Shot("L2H1", "a key", 1)]
    together = drawing(pipe, shots)
    for shot, picture in zip(shots, together, strict=True):
        alone = np.asarray(drawing(pipe, [shot])[0], int)
        assert np.abs(np.asarray(picture, int) - alone).max() <= 2
    assert all(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() > 5 for a, b in [together[:2], together[2:]])
    batches = drawing.batches([Shot("L2H0", "a", 0), Shot("L0H1", "a", 0), Shot("L2H3", "a", 0)])
    assert [[shot.heads for shot in batch] for batch in batches] == [["L0H1"], ["L2H0", "L2H3"]]


def test_a_folder_belongs_to_one_search(tmp_path):
    search(tmp_path / "run")
    with pytest.raises(ControlError, match="begun with another rounds"):
        search(tmp_path / "run", rounds=1)
    other = make()
    other.transformer.proj_out.weight.data.add_(1)
    with pytest.raises(ControlError, match="begun with another weights"):
        search(tmp_path / "run", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ControlError, match="holds other files"):
        search(tmp_path / "full")
    with pytest.raises(ControlError, match="want more than the 4 heads"):
        search(tmp_path / "new", rounds=5, top_k=2)
    assert not (tmp_path / "new").exists()
    ledger = Ledger(tmp_path / "run", search(tmp_path / "run").config)
    ledger.append("a", [{"bright": 1.0}])
    path = tmp_path / "run" / "results-0.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(ControlError, match=r"results-0.jsonl, line 1 is damaged"):
        ledger.read()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rounds"] == 2


def test_processes_may_begin_a_folder_at_once(tmp_path):
    faults = []

    def begin(folder, rank, gate):
        gate.wait(60)
        try:
            Ledger(folder, config(), rank).append(str(rank), [])
        except ControlError as fault:
            faults.append(fault)

    for i in range(40):
        gate = threading.Barrier(3)
        threads = [threading.Thread(target=begin, args=(tmp_path / str(i), rank, gate)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults
