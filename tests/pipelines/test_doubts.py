"""What is doubtful in a set is said, once: pictures that are black or not finite, prompts, words."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import pytest
import torch
from runs import tiny_pipe

from attnctrl import Recipe, generate

ASKED = {"model": "tiny", "prompts": ("a fox", "a car"), "num_inference_steps": 1, "height": 32, "width": 32}


@pytest.mark.parametrize("value", [float("nan"), -1e9], ids=["not finite", "black"])
def test_a_black_picture_is_said_once_with_the_way_out(value):
    pipe = tiny_pipe()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.zero_()
        pipe.vae.decoder.conv_out.bias.fill_(value)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        generate(pipe, Recipe(**ASKED))
    said = [str(one.message) for one in raised if "invalid value" not in str(one.message)]
    assert said == ["picture 0, 1 is black all over; try a lower guidance or strength"]


def test_a_usual_picture_is_not_doubted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(tiny_pipe(), Recipe(**ASKED))


def test_python_hears_nothing_of_torchvision():
    """In a process of its own: nothing but progress, on a model that is loaded for the first time."""
    said = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", "import attnctrl; attnctrl.load('tiny-sd3', device='cpu')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = [line for line in re.split(r"[\r\n]+", said.stdout + said.stderr) if line and "Loading" not in line]
    assert told == []
