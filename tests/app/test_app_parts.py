"""The app without its server: jobs, sessions, previews, tabs as files."""

from __future__ import annotations

import threading
import time

import gradio as gr
import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from served import framed

from attnctrl import ControlError
from attnctrl.app.web import frame as frames
from attnctrl.app.web import look, tabs
from attnctrl.app.web import store as stores
from attnctrl.app.web.app import app
from attnctrl.app.web.engine import enlarged
from attnctrl.app.web.frame import Tab, all_tabs
from attnctrl.app.web.jobs import Cancelled, Job, Update
from attnctrl.app.web.store import Store
from attnctrl.pipelines.generate import generate
from attnctrl.pipelines.recipe import Recipe

MODEL = "tiny-sd3"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def frame():
    """The app's frame, with one of the embedded models."""
    with framed([MODEL], items=4, letters=40) as found:
        yield found


@pytest.fixture
def store():
    """Three sessions of two results each."""
    found = Store(3, 2, 60)
    yield found
    found.close()


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def test_a_job_streams_its_progress_and_ends_with_its_result():
    job, step = Job(), threading.Event()

    def work():
        job.plan(4)
        job.part("First", 2)(2, 2)
        job.part("Second", 2)(1, 2)
        step.wait(5)
        return "made"

    stream = job.run(work, every=0.01)
    update = next(stream)
    assert (update.done, update.total, update.doing) == (3, 4, "Second")
    assert update.left is not None
    assert "3 of 4" in look.progress(update)
    step.set()
    assert list(stream)[-1] == "made"


def test_a_cancelled_job_stops_at_its_next_step():
    job, reached = Job(), []

    def work():
        progress = job.part("Drawing", 100)
        for number in range(100):
            reached.append(number)
            if number == 3:
                job.cancel()
            progress(number + 1, 100)

    with pytest.raises(Cancelled):
        list(job.run(work, every=0.01))
    assert reached == [0, 1, 2, 3]


def test_a_job_whose_listener_is_gone_is_cancelled():
    job, ended = Job(), threading.Event()

    def work():
        progress = job.part("Drawing", 1000)
        try:
            for number in range(1000):
                progress(number + 1, 1000)
                time.sleep(0.01)
        except Cancelled:
            ended.set()
            raise

    stream = job.run(work, every=0.01)
    assert isinstance(next(stream), Update)
    stream.close()
    assert job.cancelled
    assert ended.is_set()


def test_what_a_job_raises_is_raised_where_it_is_listened_to():
    def work():
        raise ControlError("no such head")

    with pytest.raises(ControlError, match="no such head"):
        list(Job().run(work, every=0.01))


def test_a_cancel_stops_a_drawing_within_a_step(frame):
    job, steps = Job(), []

    class Counted(Job):
        def tell(self, done, *rest):
            super().tell(done, *rest)
            steps.append(done)
            if done == 2:
                self.cancel()

    job = Counted()
    job.plan(50)
    with pytest.raises(Cancelled):
        list(job.run(lambda: frame.engine.draw(job, Recipe(prompts=("a fox",), num_inference_steps=50), "Plain", 50)))
    assert max(steps) == 2
    with frame.engine.pipe(MODEL) as pipe:
        made = generate(pipe, Recipe(prompts=("a fox",), num_inference_steps=2))
    assert len(made.pictures) == 1, "the pipeline draws again after a cancel"


def test_sessions_keep_so_many_results_and_folders(store):
    visit = store.of("a")
    names = [visit.keep(number) for number in range(3)]
    with pytest.raises(ControlError, match="no longer kept"):
        visit.result(names[0])
    assert [visit.result(name) for name in names[1:]] == [1, 2]
    for _ in range(4):
        visit.new_folder("run")
        time.sleep(0.01)
    assert len(list(visit.folder.iterdir())) == 2


def test_sessions_do_not_see_each_others_results(store):
    name = store.of("a").keep("mine")
    assert store.of("a").result(name) == "mine"
    with pytest.raises(ControlError, match="no longer kept"):
        store.of("b").result(name)
    assert store.of("b").found(name) is None
    assert store.of("a").folder != store.of("b").folder


def test_too_many_sessions_push_out_the_idle_ones_longest_unused(store):
    first, second = store.of("a"), store.of("b")
    first.jobs["set"] = Job()
    store.of("c"), store.of("d")
    assert len(store) == 3
    assert store.of("a") is first, "a session at work stays"
    assert not second.folder.exists()


def test_sessions_and_their_files_expire(store, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stores.time, "monotonic", clock.monotonic)
    idle, busy = store.of("idle"), store.of("busy")
    name = idle.keep("old")
    (idle.new_folder("run") / "picture.png").touch()
    busy.waiting["set"] = True
    clock.now += 61
    store.sweep()
    assert not idle.folder.exists()
    assert len(store) == 1
    assert store.of("busy") is busy
    with pytest.raises(ControlError):
        store.of("idle").result(name)


def test_a_visitor_who_leaves_takes_work_and_files_along(store):
    visit = store.of("a")
    job = visit.jobs["set"] = Job()
    store.drop("a")
    assert job.cancelled
    assert not visit.folder.exists()
    assert len(store) == 0
    store.drop("nobody")
    store.close()
    assert not store.root.exists()


def test_work_that_waits_can_be_called_off(store):
    visit = store.of("a")
    visit.waiting["set"] = True
    visit.stop("set")
    visit.stop("heads")
    assert visit.waiting == {"set": False}


def test_the_last_preview_is_nearly_the_finished_picture(frame):
    seen = []
    recipe = Recipe(prompts=("a red fox, comic",), seed=2, num_inference_steps=6)
    with frame.engine.pipe(MODEL) as pipe:
        assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
        made = generate(pipe, recipe, watch=lambda numbers, look: seen.append((list(numbers), look())))
    assert [numbers for numbers, _ in seen] == [[0]] * 6
    final = np.asarray(made.pictures[0], dtype=float)
    gaps = [np.abs(np.asarray(pictures[0], dtype=float) - final).mean() for _, pictures in seen]
    assert gaps[-1] < 0.5
    assert gaps[1] > gaps[-1]
    estimate, latest = gaps[-2], np.abs(final - final.mean()).mean()
    assert estimate < latest / 2, "the estimate before the last step is near the picture"


@pytest.mark.parametrize("steps", [1, 3, 7, 24])
def test_previews_come_however_few_the_steps(frame, monkeypatch, steps):
    seen = []
    monkeypatch.setattr(Job, "tell", lambda job, *more: seen.append(dict(job.previews)))
    job = Job()
    job.plan(steps)
    frame.engine.draw(
        job, Recipe(model=MODEL, prompts=("a fox",), height=32, width=32, num_inference_steps=steps), "", steps
    )
    before = [one[0] for one in seen[1:-1] if one]
    assert len({id(picture) for picture in before}) == min(steps, 6) - (steps <= 6)


def test_small_pictures_are_enlarged_by_whole_factors():
    assert enlarged(PICTURE).size == (256, 256)
    assert enlarged(Image.new("RGB", (100, 60))).size == (200, 120)
    assert enlarged(Image.new("RGB", (300, 60))).size == (300, 60)


def test_a_tab_is_one_file(tmp_path, monkeypatch):
    assert [tab.title for tab in all_tabs()] == ["Style set", "Heads", "Attention", "Evaluate"]
    (tmp_path / "another_tab.py").write_text(
        "import gradio as gr\nfrom attnctrl.app.web.frame import Tab\n\n"
        "def build(frame):\n    gr.Markdown('A tab of one file')\n\nTAB = Tab('Another', 2.5, build)\n"
    )
    monkeypatch.setattr(tabs, "__path__", [*tabs.__path__, str(tmp_path)])
    assert [tab.title for tab in all_tabs()] == ["Style set", "Heads", "Another", "Attention", "Evaluate"]
    page, found = app([MODEL], device="cpu")
    found.store.close()
    assert any(getattr(block, "value", None) == "A tab of one file" for block in page.blocks.values())


def test_tabs_are_built_with_the_frame(frame):
    built = []
    tab = Tab("Own", 9, built.append)
    with gr.Blocks():
        tab.build(frame)
    assert built == [frame]
    assert isinstance(frame, frames.Frame)
