"""The method that CONTRIBUTING.md walks through is one that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_flux, tiny_sd3

from attnctrl import Control, Observe, attached
from attnctrl.registry import controls_of, load_file

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
LAST = re.compile(r"generate \"a fox\" --control (\S+)`")


@pytest.fixture
def quiet(tmp_path: Path, table: None) -> Control:
    text = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n# my_method.py\n(.*?)```", text, re.DOTALL)
    said = LAST.search(text)
    assert code
    assert said
    file = tmp_path / "my_method.py"
    file.write_text(code[1], encoding="utf-8")
    load_file(file)
    return controls_of(said[1])[0]


@pytest.mark.parametrize("build", [tiny_flux, tiny_sd3], ids=["FLUX", "SD3"])
def test_the_example_reads_the_text_less(build, quiet, latents_of):
    pipe, shares = build(), {}
    stock = latents_of(pipe, n=1)
    for strength in (0.0, 2.0):
        watch = Observe()
        with attached(pipe, [quiet.model_copy(update={"strength": strength}), watch]) as session:
            result = latents_of(pipe, n=1)
            seen = session.recorded(watch).seen
        label = next(label for _, label in seen if label.startswith("L2"))
        shares[strength] = seen[0, label].statistics[0]
        assert torch.equal(result, stock) == (strength == 0)
    fewer = shares[2.0] / shares[0.0]
    assert fewer[0] < 0.5, "the chosen head"
    assert (fewer[1:] - 1).abs().max() < 0.3, "the others see another picture, with the same bias"
