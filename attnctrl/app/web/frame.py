"""The frame that tabs stand in: a tab is one file in tabs/ with a `TAB`, and finds here what tabs share."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import gradio as gr
from PIL import Image
from pydantic import ValidationError

from ...descriptions import explain
from ...errors import ControlError, NoEffectWarning, OverGuidanceWarning, PlaceWarning
from ...pictures import DATA_URI
from ...pipelines.generate import PictureSet, write_set
from ...pipelines.recipe import PNG_KEY, Recipe
from . import look, tabs
from .engine import Engine
from .jobs import Cancelled, Job, Update
from .store import Store, Visit

QUEUE: dict[str, Any] = {"concurrency_id": "pipeline", "concurrency_limit": 1, "api_visibility": "private"}
"""Of every event that touches the pipeline."""
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that only change what is shown."""
Values = dict[Any, Any]
"""What components get; gr.skip() of Gradio for those that are left out."""


@dataclass(frozen=True)
class Tab:
    """A tab: its title, its place, and the function that builds it into the frame."""

    title: str
    order: int
    build: Callable[[Frame], None]


@dataclass(frozen=True)
class Frame:
    """What tabs share."""

    engine: Engine
    store: Store

    def visit(self, request: gr.Request | None) -> Visit:
        """The visitor's session."""
        return self.store.of(request.session_hash if request else None)

    def work(
        self, tab: str, run: gr.Button, cancel: gr.Button, status: gr.HTML, inputs: Sequence[Any],
        outputs: Sequence[Any], do: Callable[[Job, Visit, Sequence[Any]], Any],
        show: Callable[[Any, Visit], Values],
        during: Callable[[Update], Values] = lambda update: {},
    ) -> gr.events.Dependency:  # fmt: skip
        """Wire a button to long work: `do` in a thread, `during` for every update, `show` for the result.

        Errors become sentences in `status`; `cancel` stops the work within a step. Inputs are passed as one sequence.
        """
        outputs = [status, run, cancel, *outputs]

        def ask(request: gr.Request) -> Values:
            self.visit(request).waiting[tab] = True
            return {
                run: gr.update(interactive=False),
                cancel: gr.update(interactive=True),
                status: look.said("In line …"),
            }

        def handle(request: gr.Request, *values: Any) -> Iterator[Values]:
            visit = self.visit(request)
            ready = {run: gr.update(interactive=True), cancel: gr.update(interactive=False)}
            if visit.waiting.pop(tab, True) is False:
                yield {**ready, status: look.said("Cancelled.")}
                return
            job = visit.jobs[tab] = Job()
            found: list[str] = []
            try:
                for update in job.run(lambda: noting(found, lambda: do(job, visit, values)), self.engine.thread):
                    if isinstance(update, Update):
                        yield {status: look.progress(update), **during(update)}
                    else:
                        shown = show(update, visit)
                        yield {**ready, status: look.said("Done.", found), **shown}
            except Cancelled:
                yield {**ready, status: look.said("Cancelled.")}
            except Exception as fault:
                yield {**ready, status: look.note(sentence(fault))}
            finally:
                visit.jobs.pop(tab, None)

        def stop(request: gr.Request) -> Values:
            self.visit(request).stop(tab)
            return {status: look.said("Stopping …")}

        cancel.click(stop, None, [status], **AT_ONCE)
        begun = run.click(ask, None, outputs[:3], trigger_mode="once", **AT_ONCE)
        done = begun.then(handle, list(inputs), outputs, show_progress="hidden", **QUEUE)

        def refused(request: gr.Request) -> Values:
            self.visit(request).waiting.pop(tab, None)
            ready = {run: gr.update(interactive=True), cancel: gr.update(interactive=False)}
            return {**ready, status: look.note("The line is full; try again in a minute.")}

        done.failure(refused, None, outputs[:3], **AT_ONCE)
        return done

    def archive(self, visit: Visit, stem: str, results: dict[str, PictureSet]) -> str:
        """A zip of finished sets, each with its sheet and recipe; its path."""
        folder = visit.new_folder(stem)
        for name, result in results.items():
            write_set(result, folder / stem / name)
        return shutil.make_archive(str(folder / stem), "zip", folder, stem)

    def read(self, path: str | None) -> Recipe:
        """The recipe of a file that a visitor gave; ControlError for what is none, or wants files of the server."""
        if not path:
            raise ControlError("there is no file; drop a recipe.json or a PNG that was made here")
        recipe = Recipe.model_validate(_foreign(Path(path)))
        self.engine.check(recipe)
        return recipe


def sentence(fault: BaseException) -> str:
    """What went wrong, for a visitor; the server's log has the rest."""
    if isinstance(fault, ValidationError):
        return explain(fault)
    if isinstance(fault, ControlError):
        return " ".join(str(fault).split())
    import traceback

    traceback.print_exception(fault)
    return f"Something went wrong here ({type(fault).__name__}); try again, or with other settings."


def all_tabs() -> list[Tab]:
    """Every tab in tabs/, in order."""
    found = [import_module(f"{tabs.__name__}.{one.name}").TAB for one in iter_modules(tabs.__path__)]
    return sorted(found, key=lambda tab: tab.order)


def noting(found: list[str], do: Callable[[], Any]) -> Any:
    """Run, and note what the controls warn of."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        result = do()
    kinds = NoEffectWarning, OverGuidanceWarning, PlaceWarning
    found += dict.fromkeys(" ".join(str(w.message).split()) for w in raised if issubclass(w.category, kinds))
    return result


def _foreign(path: Path) -> Any:
    """The JSON of a recipe or of a PNG's recipe, without any path in it."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as image:
                text = image.info.get(PNG_KEY)
            if text is None:
                raise ControlError("this PNG carries no recipe; use one that was made here, or its recipe.json")
        else:
            text = path.read_text(encoding="utf-8")
        body = json.loads(text)
    except ControlError:
        raise
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError):
        raise ControlError("this file is no recipe; drop a recipe.json or a PNG that was made here") from None
    _refuse_paths(body)
    return body


def _refuse_paths(body: Any) -> None:
    if isinstance(body, dict):
        for name, value in body.items():
            if name in ("picture", "mask") and value is not None and not str(value).startswith(DATA_URI):
                raise ControlError("the recipe names a picture by its path; only pictures inside the recipe are read")
            _refuse_paths(value)
    elif isinstance(body, list):
        for value in body:
            _refuse_paths(value)
