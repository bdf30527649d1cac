"""One transformer, two threads: a session on one pipeline and a plain call of another; each gets its own picture."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from tiny import tiny_flux, tiny_sd3
from torch import Tensor

from attnctrl import NAG, SLG, AlignedStyle, SoftPAG, StyleAligned, Where, attached

pytestmark = pytest.mark.filterwarnings("ignore::attnctrl.OverGuidanceWarning")
MODELS = {"FLUX": tiny_flux, "SD3": tiny_sd3}
CONTROLS = {
    "AlignedGen": AlignedStyle(where=Where(blocks="all")),
    "SoftPAG": SoftPAG(where=Where(heads="L1H1 L2H3")),
    "SLG": SLG(where=Where(blocks="1", steps="all")),
    "NAG": NAG(prompt="an owl"),
    "two": [StyleAligned(), SoftPAG(where=Where(heads="L1H1 L2H3"))],
}
both_models = pytest.mark.parametrize("model", MODELS)
controls = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
PATIENCE = 30.0
"""Seconds after which a thread hangs."""
STEPS = 4


@dataclass
class Pair:
    """Pipelines `a` and `b` with one transformer and schedulers of their own; their prompts are encoded beforehand,
    since tokenizers do not bear two threads."""

    a: Any
    b: Any
    texts: dict[str, Tensor] = field(default_factory=dict)

    def run(self, pipe: Any, seed: int, **more: Any) -> Tensor:
        """Latents of two pictures; other texts, noise and length for `b`."""
        mine = {name: value if pipe is self.a else value.flip(0) for name, value in self.texts.items()}
        generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
        steps = STEPS if pipe is self.a else STEPS + 1
        call = {**mine, "num_inference_steps": steps, "height": 64, "width": 64, "output_type": "latent", **more}
        images: Tensor = pipe(generator=generators, **call).images
        return images


def pair_of(model: str) -> Pair:
    a = MODELS[model]()
    b = type(a)(**{**a.components, "scheduler": copy.deepcopy(a.scheduler)})
    b.set_progress_bar_config(disable=True)
    prompts = ["a fox", "a teapot"]
    with torch.no_grad():
        if model == "FLUX":
            embeds, pooled, _ = a.encode_prompt(prompts, None, max_sequence_length=12)
            return Pair(a, b, {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})
        embeds, _, pooled, _ = a.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=12
        )
    names = ("prompt_embeds", "negative_prompt_embeds"), ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    texts = {
        name: value * scale
        for both, value in zip(names, (embeds, pooled), strict=True)
        for name, scale in zip(both, (1, -0.5), strict=True)
    }
    return Pair(a, b, texts)


class Work(threading.Thread):
    """A thread whose result, or failure, is had by `value()`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.result, self.failure = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as failure:
            self.failure = failure

    def value(self, patience: float = PATIENCE) -> Any:
        self.join(patience)
        assert not self.is_alive(), f"a thread hangs after {patience} s"
        if self.failure is not None:
            raise self.failure
        return self.result


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """What a failed test leaves running ends before the next one."""
    yield
    for thread in threading.enumerate():
        if isinstance(thread, Work):
            thread.join(PATIENCE)


def solo(pair: Pair, control: Any, seed: int = 0) -> Tensor:
    with attached(pair.a, control):
        return pair.run(pair.a, seed)


def slowly(*_: Any) -> dict[str, Any]:
    """After every step of a run: the other thread's turn."""
    time.sleep(0.01)
    return {}


@both_models
@controls
def test_a_plain_call_at_a_random_moment(control, model):
    """Eight of eight: before, while and after the other's call."""
    pair = pair_of(model)
    expected, stock = solo(pair, control), pair.run(pair.b, 7)
    assert (expected - pair.run(pair.a, 0)).abs().max() > 1e-2
    luck, wrong = random.Random(5), []

    def session(begun: threading.Event) -> Tensor:
        time.sleep(0.01)
        with attached(pair.a, control):
            begun.set()
            time.sleep(0.01)
            result = pair.run(pair.a, 0, callback_on_step_end=slowly)
            time.sleep(0.02)
            return result

    for _ in range(8):
        begun, delay = threading.Event(), luck.uniform(0.0, 0.25)
        a = Work(partial(session, begun))
        time.sleep(delay)
        b = Work(partial(pair.run, pair.b, 7, callback_on_step_end=slowly))
        ours, theirs = a.value(), b.value()
        wrong.append((torch.equal(ours, expected), torch.equal(theirs, stock)))
    assert wrong == [(True, True)] * 8, "(with the session, the plain one), is it right?"
    assert torch.equal(pair.run(pair.b, 7), stock)
    assert torch.equal(solo(pair, control), expected)


@both_models
@controls
@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_a_plain_call_that_begins_within_a_sessions_call(control, model, step):
    """B begins at a step of A's run, and A goes on while B may wait: until A's session ends, and no longer."""
    pair = pair_of(model)
    expected, stock = solo(pair, control), pair.run(pair.b, 7)
    started: list[Work] = []

    def begin(_: Any, index: int, *__: Any) -> dict[str, Any]:
        if index == step:
            started.append(Work(partial(pair.run, pair.b, 7)))
        time.sleep(0.02)
        return {}

    def session() -> Tensor:
        with attached(pair.a, control):
            result = pair.run(pair.a, 0, callback_on_step_end=begin)
            time.sleep(0.05)
            return result

    assert torch.equal(Work(session).value(), expected)
    assert torch.equal(started[0].value(), stock)


@both_models
@controls
def test_a_session_that_begins_within_a_plain_call(control, model):
    """A attaches between two steps of B's run and makes its picture; B goes on, at once or when A has ended."""
    pair = pair_of(model)
    expected, stock = solo(pair, control), pair.run(pair.b, 7)
    begun, gone_on = threading.Event(), threading.Event()

    def pause(_: Any, index: int, *__: Any) -> dict[str, Any]:
        begun.set()
        time.sleep(0.05 if index == 0 else 0.01)
        return {}

    def session() -> Tensor:
        begun.wait(PATIENCE)
        with attached(pair.a, control):
            result = pair.run(pair.a, 0, callback_on_step_end=slowly)
            gone_on.wait(0.2)
            return result

    a, b = Work(session), Work(partial(pair.run, pair.b, 7, callback_on_step_end=pause))
    assert torch.equal(b.value(), stock)
    gone_on.set()
    assert torch.equal(a.value(), expected)


@both_models
@controls
def test_a_session_that_begins_while_the_transformer_runs(control, model):
    """A attaches when B is within its second block: B's pass must end as it began."""
    pair = pair_of(model)
    expected, stock = solo(pair, control), pair.run(pair.b, 7)
    inside, owner = threading.Event(), []

    def pause(*_: Any) -> None:
        if owner == [threading.get_ident()] and not inside.is_set():
            inside.set()
            time.sleep(0.1)

    def plain() -> Tensor:
        owner.append(threading.get_ident())
        return pair.run(pair.b, 7)

    def session() -> Tensor:
        inside.wait(PATIENCE)
        with attached(pair.a, control):
            return pair.run(pair.a, 0, callback_on_step_end=lambda *_: time.sleep(0.06) or {})

    hook = pair.a.transformer.transformer_blocks[0].register_forward_hook(pause)
    try:
        a, b = Work(session), Work(plain)
        theirs, ours = b.value(), a.value()
    finally:
        hook.remove()
    assert torch.equal(theirs, stock)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("ends", ["", "by an exception"])
def test_a_plain_call_waits_no_longer_than_the_session_lasts(ends):
    """A session that is held open and does nothing: B waits or runs; when it has ended, B has its stock picture."""
    pair = pair_of("FLUX")
    stock = pair.run(pair.b, 7)
    attached_, release = threading.Event(), threading.Event()

    def session() -> None:
        with attached(pair.a, CONTROLS["two"]):
            pair.run(pair.a, 0)
            attached_.set()
            release.wait(PATIENCE)
            if ends:
                raise RuntimeError("stop")

    a = Work(session)
    assert attached_.wait(PATIENCE)
    others = [Work(partial(pair.run, pair.b, 7))]
    others[0].join(0.5)
    release.set()
    if ends:
        with pytest.raises(RuntimeError, match="stop"):
            a.value()
    else:
        a.value()
    assert torch.equal(others[0].value(10.0), stock)
    assert torch.equal(pair.run(pair.b, 7), stock)


def test_an_exception_in_a_plain_call_frees_the_transformer():
    """What B holds while it runs is given back when it fails: a session in another thread begins."""
    pair = pair_of("FLUX")
    expected = solo(pair, CONTROLS["two"])
    hook = pair.a.transformer.transformer_blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Work(partial(pair.run, pair.b, 7)).value()
    hook.remove()
    assert torch.equal(Work(partial(solo, pair, CONTROLS["two"])).value(), expected)
    with attached(pair.a, CONTROLS["two"]):
        failing = pair.a.transformer.transformer_blocks[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pair.run(pair.a, 0)
        failing.remove()
        assert torch.equal(pair.run(pair.a, 0), expected)
