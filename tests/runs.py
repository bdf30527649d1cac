"""Small runs of style sets: what the tests of runs and of their command share."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
from PIL import Image
from tiny import tiny_sd3

from attnctrl import controlled
from attnctrl.evals.ledger import write_file
from attnctrl.evals.runs.arms import arms
from attnctrl.evals.runs.config import Row, RunConfig, seed_of
from attnctrl.evals.runs.finished import Finished, read_run
from attnctrl.evals.runs.report import ITEMS, SUMMARY, frechet_of, items_csv
from attnctrl.evals.runs.run import Run
from attnctrl.evals.runs.sets import StyleSet
from attnctrl.evals.runs.summary import summarise

SUBJECTS = (("a fox", "a key"), ("a star", "a car"), ("a bell", "an owl"), ("a moon", "a tree"))
SETS = tuple(
    StyleSet(id=f"ink-{i}", prompts=tuple(f"{one}, ink" for one in pair), subjects=pair, style="ink")
    for i, pair in enumerate(SUBJECTS, 1)
)
ITEM = {"num_inference_steps": 2, "height": 32, "width": 32}


class Light:
    """Mean lightness of a set, under the name of a style metric."""

    name = "lite-style"

    def __call__(self, drawn):
        return float(drawn.arrays.mean() / 255)


class Spread:
    """How far pictures are from their mean, under the name of a content metric."""

    name = "lite-diversity"

    def __call__(self, drawn):
        return float(drawn.arrays.std(0).mean() / 255)


class Picky(Light):
    """Fails for one set."""

    def __init__(self, prompt, fault):
        self.prompt, self.fault = prompt, fault

    def __call__(self, drawn):
        if drawn.prompts[0] == self.prompt:
            raise self.fault
        return super().__call__(drawn)


def tiny_pipe():
    stock = tiny_sd3()
    pipe = controlled(type(stock))(**stock.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def settings(methods=("plain,aligned",), **more):
    found = arms(methods) if isinstance(methods[0], str) else methods
    values = {"model": "tiny", "sets": "ink", "arms": found, "baseline": found[0].name, **ITEM}
    return RunConfig(**{**values, "metrics": ("lite-style", "lite-diversity"), **more})


def begin(folder, pipe, sets=SETS, measures=None, rank=0, of=1, wait=lambda: None, **more):
    """A run as process `rank` of so many would begin it; its barrier is `wait`, so that they can run one after another."""
    state = SimpleNamespace(num_processes=of, process_index=rank, is_main_process=rank == 0, wait_for_everyone=wait)
    with mock.patch("attnctrl.evals.runs.run.processes", return_value=state):
        return Run(pipe, settings(**more), sets, measures or [Light(), Spread()], folder)


def summary_text(run):
    return json.dumps(summarise(run, None, frechet_of(run)).as_json(), indent=1, ensure_ascii=False) + "\n"


def plain_report(folder, against=None, rows=None):
    """`write_report` without its page."""
    run = read_run(folder)
    texts = {ITEMS: items_csv(run), SUMMARY: summary_text(run)}
    return [write_file(folder / name, text.encode()) for name, text in texts.items()]


def pictures(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def result(folder):
    """All that must not depend on how a run came about: pictures, items.csv, summary.json."""
    run = read_run(folder)
    return pictures(folder), items_csv(run), summary_text(run)


def stray(folder):
    """Files that a finished run should not have, drafts of killed processes left out: they are hidden."""
    known = ("config.json", "sets.jsonl", "items.csv", "summary.json", "costs.json", "table.md", "report.html")
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in known
        and not path.name.startswith((".", "results-"))
        and path.suffix != ".png"
    ]


@contextmanager
def counted():
    """The prompts that are drawn meanwhile, one entry an item."""
    from attnctrl.evals.runs import tasks

    drawn, generate = [], tasks.generate

    def counting(pipe, recipe, *more):
        drawn.append(recipe.prompts)
        return generate(pipe, recipe, *more)

    with mock.patch.object(tasks, "generate", counting):
        yield drawn


def forked(work, said=None):
    """The process id of a copy of this process that does `work` and ends with its exit code, its stderr in `said`."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = open(said or os.devnull, "w")  # noqa: SIM115
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child):
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def made_up(values, metrics=("lite-style", "lite-diversity"), methods=("plain", "aligned", "naive"), **more):
    """A run whose figures are given: values[method][metric] is a list over sets; None there: no value, "x": failed."""
    config = settings(methods, metrics=tuple(metrics), **more)
    count = max(len(one) for by in values.values() for one in by.values())
    sets = {f"s{i}": StyleSet(id=f"s{i}", prompts=("a fox", "a key")) for i in range(count)}
    rows = {}
    for arm in config.arms:
        for i, one in enumerate(sets):
            got = {name: column[i] for name, column in values.get(arm.name, {}).items() if i < len(column)}
            if got:
                failed = "it broke" if "x" in got.values() else None
                kept = {} if failed else got
                rows[arm.name, one] = Row(set=one, arm=arm.name, seed=seed_of(0, one), values=kept, failed=failed)
    return Finished(None, config, sets, rows)


def noise(*sizes, seed=0):
    """RGB pictures of noise."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for size in sizes]
