"""A run: every set drawn and measured under every arm, on any number of processes, killed and resumed at will."""

from __future__ import annotations

import errno
import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from ...descriptions import explain
from ...errors import ControlError, NoEffectWarning, OverGuidanceWarning
from ...pipelines.generate import check_arguments, check_size, environment
from ...pipelines.mixin import ControlledPipeline
from ...pipelines.presets import described
from ...pipelines.recipe import PNG_KEY, Recipe
from ...processors.attaching import host_of
from ..ledger import Ledger, processes, write_file
from ..metrics.metric import Metric
from . import memory
from .arms import Arm
from .config import SETS, Row, RunConfig, digest, dumped, item_seed, picture_file
from .sets import Item
from .tasks import Drawn, Step, StyleTask, Task

Progress = Callable[[int, int, float], None]
"""progress(items done by all processes, items in all, seconds left)."""


class Run:
    """A run in a folder. One item is one set (or edit) under one arm: one line of the ledger, one file a picture.

    `task` says how an item is drawn; style sets if not given. Items are shared out by set. An item that fails is a row
    that says why, and is tried again when the run is started again. Raises ControlError for a folder of another run,
    sets that an arm cannot draw, and a folder that cannot be written to.
    """

    def __init__(
        self,
        pipe: ControlledPipeline,
        config: RunConfig,
        sets: Sequence[Item],
        metrics: Sequence[Metric],
        folder: Path,
        task: Task | None = None,
    ) -> None:
        self.task = task or cast(Task, StyleTask(pipe))
        torch.set_num_threads(config.threads)
        sites = host_of(pipe).sites
        for arm in config.arms:
            options = config.options(arm)
            arm.check_model(sites, options.get("num_inference_steps", pipe.settings.num_inference_steps))
            check_arguments(pipe, Recipe(model=config.model, prompts=("",), **options))
            check_size(pipe, options.get("height"), options.get("width"))
            for one in sets:
                self.task.check(config, arm, one)
        self.pipe, self.metrics, self.folder = pipe, metrics, folder
        self.sets = {one.id: one for one in sets}
        settled = {"weights": described(pipe, config.model)["weights"], "environment": environment(pipe)}
        self.config = config.model_copy(update={**settled, "sets_digest": digest(sets)})
        self.state = processes()
        with _disk(folder):
            self.ledger = Ledger(folder, self.config, self.state.process_index)
        self.redrawn: list[str] = []

    @property
    def items(self) -> int:
        """How many items the run has."""
        return len(self.sets) * len(self.config.arms)

    def rows(self) -> dict[tuple[str, str], Row]:
        """What is done so far, by arm and set; of two lines of one item the one that did not fail."""
        return merged(self.folder, self.ledger.done.values())

    def run(self, progress: Progress | None = None, step: Step | None = None) -> dict[tuple[str, str], Row]:
        """Draw and measure what is not there yet, this process its share; then everybody has everything.

        step() is called after every solver step; what it raises ends the run, which can go on later.
        """
        with _disk(self.folder), self.ledger.writing():
            if self.state.is_main_process:
                self.ledger.write(SETS, dumped(list(self.sets.values())))
            wanted = list(self._missing())
            begun, lines = time.monotonic(), self.ledger.lines()
            good = sum(row.failed is None for row in self.rows().values()) - len(self.redrawn)
            for arm, one in wanted:
                row = self.item(arm, one, step)
                self.ledger.append(f"{arm.slug}/{one.id}{'#failed' if row.failed else ''}", [row.model_dump()])
                if progress and self.state.is_main_process:
                    new = self.ledger.lines() - lines
                    done = min(self.items, good + new)
                    progress(done, self.items, (self.items - done) * (time.monotonic() - begun) / new)
            self.state.wait_for_everyone()
            self.ledger.read()
        return self.rows()

    def item(self, arm: Arm, one: Item, step: Step | None = None) -> Row:
        """Draw, save and measure one set under one arm."""
        seed = item_seed(self.config.seed, one)
        memory.reset()
        begin = time.monotonic()
        try:
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always")
                drawn = self.task.draw(self.config, arm, one, seed, step)
            warned = [str(w.message) for w in raised if issubclass(w.category, NoEffectWarning | OverGuidanceWarning)]
            ended = time.monotonic()
            peak = memory.peak_mib()
            files, beside = self._saved(arm, one, drawn)
            values = {metric.name: metric(drawn.measured) for metric in self.metrics}
        except Exception as fault:
            if isinstance(fault, OSError) and fault.errno in _DISK:
                raise
            return Row(set=one.id, arm=arm.name, seed=seed, failed=_sentence(fault))
        taken = ended - begin if drawn.seconds is None else drawn.seconds
        return Row(
            set=one.id, arm=arm.name, seed=seed, seconds=round(taken, 4), measuring=round(time.monotonic() - ended, 4),
            peak_mib=round(peak, 1), pictures=files, beside=beside, values=values,
            warned="; ".join(dict.fromkeys(warned)) or None,
        )  # fmt: skip

    def _saved(self, arm: Arm, one: Item, drawn: Drawn) -> tuple[dict[str, str], dict[str, str]]:
        """Write the pictures, with what replays them, and those beside; each with its SHA-256."""
        info = PngImagePlugin.PngInfo()
        info.add_itxt(PNG_KEY, drawn.recipe)
        own = {picture_file(arm, one.id, number): picture for number, picture in enumerate(drawn.pictures)}
        files = {name: self._written(name, picture, info) for name, picture in own.items()}
        return files, {name: self._written(name, picture) for name, picture in drawn.beside.items()}

    def _written(self, name: str, picture: Image.Image, info: PngImagePlugin.PngInfo | None = None) -> str:
        body = BytesIO()
        picture.save(body, "PNG", pnginfo=info)
        write_file(self.folder / name, body.getvalue())
        return hashlib.sha256(body.getvalue()).hexdigest()

    def _missing(self) -> Iterator[tuple[Arm, Item]]:
        """This process's items that are not done, or whose pictures are not what was drawn."""
        rows = self.rows()
        for number, one in enumerate(self.sets.values()):
            if number % self.state.num_processes != self.state.process_index:
                continue
            for arm in self.config.arms:
                row = rows.get((arm.name, one.id))
                if row is None or row.failed is not None:
                    yield arm, one
                elif damaged := damaged_file(self.folder, row.files):
                    self.redrawn.append(damaged)
                    yield arm, one


def merged(folder: Path, lines: Iterable[Sequence[Any]]) -> dict[tuple[str, str], Row]:
    """Rows by arm and set; of several of one item the last that did not fail. ControlError for what is no row."""
    found: dict[tuple[str, str], Row] = {}
    for line in lines:
        try:
            (row,) = (Row.model_validate(one) for one in line)
        except ValueError as fault:
            says = explain(fault) if isinstance(fault, ValidationError) else f"{len(line)} rows in a line"
            raise ControlError(f"a results-*.jsonl in {folder} is not of this kind of run: {says}") from None
        if row.failed is None or row.key not in found:
            found[row.key] = row
    return found


def damaged_file(folder: Path, pictures: Mapping[str, str]) -> str | None:
    """The first picture whose bytes are not those that were drawn, if any."""
    for name, wanted in pictures.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            return name
    return None


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        text = f"cannot write to {folder}: {fault.strerror}; what is done is kept, make room and give the same command"
        raise ControlError(text) from None


def _sentence(fault: BaseException) -> str:
    text = " ".join(str(fault).split())[:300]
    return text if isinstance(fault, ControlError) else f"{type(fault).__name__}: {text}"
