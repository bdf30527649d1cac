"""What single metrics read, and what copies of the leader win and lose."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from run_fixtures import FEW, as_drawn
from runs import (
    SETS,
    Spread,
    begin,
    noise,
    plain_report,
)  # fmt: skip

from attnctrl import ControlError
from attnctrl.evals.metrics import judged, lite
from attnctrl.evals.metrics.kinds import higher_is_better, metric, metrics
from attnctrl.evals.objectives import Models
from attnctrl.evals.runs.finished import read_run
from attnctrl.evals.runs.summary import summarise


def test_copies_win_style_and_lose_content(drawer, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    names = ("lite-style", "lite-diversity")
    measures = metrics([*names, "frechet-lite"])
    assert [one.name for one in measures] == list(names), "a whole method's is the report's"
    begin(tmp_path, drawer, SETS[:3], measures, methods=("plain,naive,copy",)).run()
    found = summarise(read_run(tmp_path))
    style, diversity = ({one.arm.name: one.means[name].mean for one in found.arms} for name in names)
    assert max(style, key=style.__getitem__) == "copy"
    assert style["copy"] == pytest.approx(1, abs=1e-6)
    assert min(diversity, key=diversity.__getitem__) == "copy"
    assert diversity["copy"] == pytest.approx(0, abs=1e-6)
    assert min(diversity["plain"], diversity["naive"]) > 1e-3
    assert not found.of("copy").pareto
    assert found.of("plain").pareto


def test_lite_metrics():
    pytest.importorskip("efficientnet_lite_pytorch", reason="install attnctrl[eval]")
    net, (a, b, c) = lite.Lite(), noise(32, 32, 32)
    ramp = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    assert net.style(as_drawn(pictures=[a, a])) == pytest.approx(1)
    assert net.diversity(as_drawn(pictures=[a, a])) == pytest.approx(0, abs=1e-9)
    near, far = net.style(as_drawn(pictures=[a, b])), net.style(as_drawn(pictures=[a, ramp]))
    assert 0 < far < near < 1
    assert net.diversity(as_drawn(pictures=[a, ramp])) > net.diversity(as_drawn(pictures=[a, b]))
    pairs = [net.style(as_drawn(pictures=list(pair))) for pair in itertools.combinations((a, b, ramp), 2)]
    assert net.style(as_drawn(pictures=[a, b, ramp])) == pytest.approx(np.mean(pairs))
    led = net.style(as_drawn(pictures=[b, ramp], reference=a))
    assert led == pytest.approx(np.mean([pairs[0], pairs[1]]), rel=1e-6)
    assert net.style(as_drawn(pictures=[a])) is None
    assert net.diversity(as_drawn(pictures=[a])) is None
    assert net.style(as_drawn(pictures=[b], reference=a)) == pytest.approx(near)
    wide = c.resize((64, 32))
    assert 0 < net.style(as_drawn(pictures=[a], reference=wide)) <= 1, "of another size"


class Reads:
    """A style judge that reads red as the hue."""

    styles = ("comic", "watercolor")

    def __init__(self):
        self.asked = []

    def named(self, images):
        return ["watercolor" if image.mean() > 127 else "comic" for image in images]

    def __call__(self, images, style):
        self.asked.append(style)
        params = np.full((len(images), 5), np.nan)
        params[:, 0], params[:, 1] = images[:, 0, 0, 0] / 256, images[:, 0, 0, 1] / 256
        return {"params": params}


def flat(red, green=0):
    return Image.new("RGB", (16, 16), (red, green, 0))


def test_style_agreement():
    judge = Reads()
    same = judged.agreement(judge, as_drawn(pictures=[flat(64)] * 3))
    assert same == 1.0
    gap = judged.agreement(judge, as_drawn(pictures=[flat(16, 64), flat(240, 64), flat(32, 128)]))
    # hue is a circle, half of it the farthest: 16 to 240 is 32 of 128, 16 to 32 is 16 of 128; ground is a line
    assert gap == pytest.approx(1 - np.mean([32 / 128, 0, 16 / 128, 64 / 256]))
    led = judged.agreement(judge, as_drawn(pictures=[flat(64)], reference=flat(64).resize((90, 40))))
    assert led == 1.0
    assert set(judge.asked) == {"comic"}
    judged.agreement(judge, as_drawn(pictures=[flat(0)], style=None, reference=Image.new("RGB", (16, 16), "white")))
    assert judge.asked[-1] == "watercolor", "read in the style that the reference shows"
    assert judged.style(judge, as_drawn(pictures=[flat(0), flat(0), Image.new("RGB", (16, 16), "white")])) == 0.5
    assert judged.style(judge, as_drawn(pictures=[flat(0)] * 2, style="cubism")) is None


def test_the_shipped_judge_agrees_with_itself():
    agreement = metric("style-agreement", Models("cpu"))
    a, b = noise(32, 32)
    assert agreement(as_drawn(pictures=[a, a, a])) == pytest.approx(1, abs=1e-6)
    assert agreement(as_drawn(pictures=[a, b])) < 1
    for size in ((130, 64), (60, 64)):
        with pytest.raises(ControlError, match=rf"multiples of 8, not {size[0]} x {size[1]} px"):
            agreement(as_drawn(pictures=[a.resize(size)] * 2))


class Sees:
    """A subject judge that says what it was told."""

    def __init__(self, *said):
        self.said, self.calls = said, 0

    def __call__(self, images):
        self.calls += 1
        assert len(images) == len(self.said), "the followers are judged"
        return self

    def subjects(self):
        return list(self.said)


def test_subjects_and_leakage():
    names = ("a fox", "a blue key", "two cats, a crown", "a fish")
    drawn = as_drawn(prompts=names, subjects=names, pictures=[flat(0)] * 4)
    judge = Sees("key", "fox", "fish")
    namer = judged.Named(judge)
    assert judged.subject(namer, drawn) == pytest.approx(2 / 3)
    assert judged.leakage(namer, drawn) == pytest.approx(1 / 3)
    assert judge.calls == 1, "one reading for both"
    assert judged.leakage(judged.Named(Sees("fox", "fox", "fox")), replace(drawn)) == 1.0, "copies leak"
    assert judged.subject(judged.Named(Sees("fox", "fox", "fox")), replace(drawn)) == 0.0
    twice = replace(drawn, subjects=("a fox", "a key", "a red fox", "a fish"))
    assert judged.leakage(namer, twice) is None, "a follower was to show it"
    unknown = replace(drawn, subjects=("a fox", "a gizmo", "a cat", "a fish"))
    assert judged.subject(namer, unknown) is None
    assert judged.subject(namer, replace(drawn, subjects=None)) is None
    assert judged.leakage(namer, replace(drawn, subjects=("a gizmo", "a key", "a cat", "a fish"))) is None
    led = replace(
        drawn, reference=flat(9), caption="a fox in the snow", subjects=("a key", "a cat", "a bird", "a fish")
    )
    assert judged.leakage(judged.Named(Sees("snow", "fox", "key", "fish")), replace(led, caption="a red fox")) == 0.25
    assert judged.subject(judged.Named(Sees("key", "fox", "key", "fish")), replace(led, subjects=("a key",) * 4)) == 0.5


def test_metrics_by_name():
    fox = as_drawn(pictures=[Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")])
    assert metric("brightness", Models("cpu"))(fox) == pytest.approx(0.5, abs=1e-3), "an objective's mean over the set"
    for text, message in (
        ("lite-stile", "no metric is called 'lite-stile'; did you mean lite-style?"),
        ("zzz", "choose style-agreement, "),
        ("leakage:3", "leakage takes nothing after the colon"),
    ):
        with pytest.raises(ControlError, match=message.replace("?", r"\?")):
            metric(text, Models("cpu"))
    assert [higher_is_better(name) for name in ("lite-style", "leakage", "frechet-lite", "contrast", "clip-t:x")] == [
        True, False, False, True, True,
    ]  # fmt: skip


def test_a_metric_of_no_number_fails_its_item(drawer, tmp_path):
    from attnctrl.evals.metrics.kinds import Measured

    rows = begin(tmp_path, drawer, FEW[:1], [Measured("lite-style", lambda drawn: float("nan")), Spread()]).run()
    assert {row.failed for row in rows.values()} == {"lite-style gave nan for the set that begins with 'a fox, ink'"}
    rows = begin(tmp_path, drawer, FEW[:1], [Measured("lite-style", lambda drawn: None), Spread()]).run()
    assert {row.values["lite-style"] for row in rows.values()} == {None}
    found = summarise(read_run(tmp_path))
    assert list(found.metrics) == ["lite-diversity"]
    plain_report(tmp_path)
