"""What the heads' tab asks of the engine: pictures, the atlas, a search, presets; all that is sent is checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...embedded import MODELS
from ...errors import ControlError
from ...evals.heads.atlas import GUIDED, PERTURBED, PLAIN, Atlas, AtlasConfig, AtlasRun, Cell
from ...evals.heads.atlas_page import write_atlas
from ...evals.heads.drawing import DrawnRun, pool, text_of
from ...evals.heads.search import Search, SearchConfig
from ...evals.objectives import KINDS, objective, parts_of, weight_of
from ...evals.pixels import COLORS
from ...pipelines.generate import PictureSet
from ...pipelines.presets import HeadPreset, described, read_preset, shipped, write_preset
from ...pipelines.recipe import Recipe
from ...processors import SoftPAG
from ...processors.attaching import host_of
from ..console import duration
from . import look
from .frame import Frame
from .head_grid import skeleton
from .jobs import Job
from .settings import NAMES, Settings
from .store import Visit

PIXELS = [name for name, kind in KINDS.items() if kind.module == "pixels" and name != "color"]
USUAL = [*PIXELS, "color:blue", "color:red", "color:green"]
"""What every atlas scores."""
JUDGED = ("style", "subject", "quality")
LETTERS = 120
ATLAS, LARGEST_W = "heads atlas", 10.0
Pictures = dict[str, PictureSet]


def asked(values: Sequence[Any]) -> dict[str, Recipe]:
    """The three recipes that prompt, heads, u, w and settings describe; ControlError says what is missing."""
    prompt, heads, u, w, *rest = values
    given, where = Settings.read(rest)
    if not (prompt or "").strip():
        raise ControlError("there is no prompt; write one")
    if not (heads or "").strip():
        raise ControlError("no head is chosen; click some in the map, or type them, such as L2H0 L3H1")
    plain = Recipe(prompts=(prompt.strip(),), **given)
    where["heads"] = heads
    controls = {
        PLAIN: (),
        **{kind: (SoftPAG(where=where, u=u, strength=s),) for kind, s in ((PERTURBED, -1.0), (GUIDED, w))},
    }
    return {kind: plain.model_copy(update={"control": one}) for kind, one in controls.items()}


def draw(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> Pictures:
    """All three; the last plain and perturbed ones are kept, so that only what changed is drawn."""
    recipes = asked(values)
    frame.engine.check(recipes[PLAIN])
    steps = frame.engine.steps_of(recipes[PLAIN])
    known = {kind: visit.found(f"heads {kind}") for kind in recipes}
    kept = {kind: one[1] for kind, one in known.items() if one and one[0] == recipes[kind]}
    job.plan(steps * (len(recipes) - len(kept)))
    found: Pictures = {}
    for kind, recipe in recipes.items():
        found[kind] = kept.get(kind) or frame.engine.draw(job, recipe, kind.capitalize(), steps)
        if kind != GUIDED:
            visit.keep((recipe, found[kind]), f"heads {kind}")
    return found


def allowed(text: str | None, model: str) -> str:
    """An objective that a visitor may name, as written; ControlError for any that would read files or run code."""
    text = (text or "").strip()
    name, _, argument = (part.strip() for part in text.partition(":"))
    if len(text) > LETTERS:
        raise ControlError(f"an objective of {len(text)} letters; this server reads at most {LETTERS}")
    if name in ("sum", "harmonic"):
        for part in parts_of(argument):
            allowed(weight_of(part)[1], model)
    elif not (name in KINDS and KINDS[name].module == "pixels") and not (name in JUDGED and model in MODELS):
        judged = ", style:NAME, subject, quality" if model in MODELS else ""
        raise ControlError(f"no objective here is {name!r}; choose {', '.join(PIXELS)}, color:NAME{judged}, or a sum:")
    return text


def objectives(model: str) -> list[str]:
    """What is offered for a model; the embedded judges' only where their extras are installed."""
    colors = [f"color:{name}" for name in COLORS]
    return [*USUAL, *(name for name in colors if name not in USUAL), *(_judged() if model in MODELS else ())]


def _judged() -> list[str]:
    try:
        from ...embedded.scenes import STYLE_NAMES
    except ImportError:
        return []
    return ["quality", "subject", *(f"style:{name}" for name in STYLE_NAMES)]


def drawn(frame: Frame, values: Sequence[Any], prompts: tuple[str, ...]) -> dict[str, Any]:
    """A search's or an atlas' arguments; ControlError for more than the server allows."""
    _, _, u, w, *rest = values
    given, where = Settings.read(rest)
    if not prompts:
        raise ControlError("there is no prompt; write one")
    if u <= 0 or w <= 0:
        raise ControlError("the atlas and the search draw guided pictures; choose u and w above 0")
    if given["guidance_scale"] or given["true_cfg_scale"] or given["negative_prompt"] or "steps" in where:
        raise ControlError(
            "the atlas and the search use the model's own guidance at all steps; under Advanced, empty guidance scale, "
            "true CFG, negative prompt and at steps"
        )
    frame.engine.check(Recipe(prompts=prompts, **given))
    names = set(DrawnRun.model_fields) & set(given)
    return {name: given[name] for name in names} | {
        "where": {"blocks": where.get("blocks", "all")}, "strength": w, "u": u, "cfg": True,
        "batch_size": 16 if given["model"] in MODELS else 2, "threads": torch.get_num_threads(),
    }  # fmt: skip


def folder_of(visit: Visit, config: DrawnRun) -> Path:
    """The session's folder for a run; the same settings find it again, so that a cancelled run goes on."""
    key = hashlib.sha256(f"{type(config).__name__}{config.model_dump_json()}".encode()).hexdigest()
    folder: Path | None = visit.found(f"heads {key}")
    if folder is None or not folder.is_dir():
        folder = visit.new_folder("heads") / "run"
    visit.keep(folder, f"heads {key}")
    return folder


def few(frame: Frame, pictures: int) -> None:
    """Refuse more pictures than the server draws at once."""
    if pictures > frame.engine.limits.pictures:
        most = frame.engine.limits.pictures
        raise ControlError(
            f"{pictures} pictures; this server draws at most {most} at once: ask for less, or fewer blocks"
        )


def draw_atlas(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> Atlas:
    """The atlas of the prompt, with its page; it is kept for other objectives."""
    wanted, *rest = values
    prompt = (rest[0] or "").strip()
    given = drawn(frame, rest, (prompt,) if prompt else ())
    name = allowed(wanted, given["model"])
    config = AtlasConfig(prompt=prompt, seed=int(rest[4 + NAMES.index("seed")] or 0), objectives=tuple(USUAL), **given)
    with frame.engine.pipe(config.model) as pipe:
        few(frame, 2 * len(pool(pipe, config.where)) + 1)
        work = AtlasRun(pipe, config, {one: objective(one) for one in USUAL}, folder_of(visit, config))
        job.plan(work.expected)
        found = scored(work.run(job.part("Atlas")), name)
    write_atlas(found, work.ledger)
    visit.keep(found, ATLAS)
    return found


def scored(atlas: Atlas, name: str) -> Atlas:
    """The atlas with one more objective, from the pictures that it drew."""
    if name in atlas.plain:
        return atlas
    heads = sorted(atlas.cells)
    files = [atlas.picture(kind, head) for kind in (GUIDED, PERTURBED) for head in heads]
    pictures = [Image.open(file) for file in (atlas.picture(PLAIN), *files)]
    plain, *values = objective(name)(pictures, [atlas.config.prompt] * len(pictures))
    cells = {
        head: Cell({**atlas.cells[head].guided, name: guided}, {**atlas.cells[head].perturbed, name: perturbed})
        for head, guided, perturbed in zip(heads, values[: len(heads)], values[len(heads) :], strict=True)
    }
    return replace(atlas, plain={**atlas.plain, name: plain}, cells=cells)


def search_of(frame: Frame, values: Sequence[Any]) -> SearchConfig:
    """The search that the components describe: every prompt with as many seeds as make the pictures of a set."""
    wanted, text, rounds, top_k, pictures, *rest = values
    prompts = tuple(line.strip() for line in (text or "").splitlines() if line.strip())
    given = drawn(frame, rest, prompts)
    name, seed = allowed(wanted, given["model"]), int(rest[4 + NAMES.index("seed")] or 0)
    few(frame, int(pictures or 1))
    seeds = tuple(range(seed, seed + max(1, -(-int(pictures or 1) // len(prompts)))))
    return SearchConfig(
        prompts=prompts, seeds=seeds, rounds=int(rounds or 1), top_k=int(top_k or 1), objectives=(name,), **given
    )


def count(config: SearchConfig, heads: int) -> int:
    """How many pictures a search of one objective draws."""
    return len(config.pairs) * (1 + sum(heads - r * config.top_k for r in range(config.rounds)))


@contextmanager
def hunting(frame: Frame, visit: Visit, config: SearchConfig) -> Iterator[Search]:
    """A search, alone with its pipeline; ControlError for a larger one than the server draws."""
    name = config.objectives[0]
    with frame.engine.pipe(config.model) as pipe:
        few(frame, count(config, len(pool(pipe, config.where))))
        yield Search(pipe, config, {name: objective(name)}, folder_of(visit, config))


def expect(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> str:
    """What a search will take, from one batch of it."""
    config = search_of(frame, values)
    job.part("Timing one batch")
    with hunting(frame, visit, config) as work:
        return f"{budget(config, len(work.heads))}, about {duration(max(1, work.measure() * work.expected()))}."


def budget(config: SearchConfig, heads: int) -> str:
    """A search's size in words."""
    sets = f"pictures a set: {len(config.pairs)} (prompts {len(config.prompts)} x seeds {len(config.seeds)})"
    return (
        f"Rounds: {config.rounds}, each {config.top_k} of {heads} heads; {sets}; in all {count(config, heads)} pictures"
    )


def search(frame: Frame, job: Job, visit: Visit, values: Sequence[Any]) -> tuple[str, str]:
    """The best set and what it gains; a search that was cancelled goes on."""
    config = search_of(frame, values)
    name = config.objectives[0]
    with hunting(frame, visit, config) as work:
        job.plan(work.expected())
        work.run(job.part("Search"))
        heads, gain, error = work.best(name)
    about = f" ± {error:.2g}" if error == error else ""
    heads = heads.replace(",", " ")
    return (
        heads,
        f"{heads}: {name} {gain:+.3g}{about} over plain, by the pictures that chose them ({len(config.pairs)}).",
    )


def fitting(model: str) -> list[str]:
    """The shipped presets that are for a model of these blocks and heads and, if they say so, these weights."""
    try:
        pipe = skeleton(model)
    except LookupError:
        return [name for name in shipped() if read_preset(name).model == model]
    sites = host_of(pipe).sites
    shape = host_of(pipe).edge.name, sites[-1].index + 1, sites[0].heads
    found = [(name, read_preset(name)) for name in shipped()]
    return [
        name
        for name, one in found
        if (one.architecture, one.blocks, one.heads_a_block) == shape and (one.weights is None or one.model == model)
    ]


def loaded(frame: Frame, source: str | None, model: str) -> tuple[HeadPreset, str]:
    """A shipped preset by name or a visitor's file, checked against the model, and what is known of it."""
    if not source:
        raise ControlError("no preset is chosen")
    try:
        text = read_preset(source).model_dump_json() if source in shipped() else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ControlError("this file is no preset; drop a JSON that was saved here") from None
    preset = HeadPreset.model_validate_json(text)
    with frame.engine.pipe(model) as pipe:
        preset.check(pipe)
        pool(pipe, preset.control().where)
    effect = preset.effect
    gain = f" {effect.objective} {effect.difference[0]:+.3g} on {effect.pictures} pictures." if effect else ""
    return preset, f"{preset.name} ({preset.status}):{gain} {preset.source}."


def saved(frame: Frame, visit: Visit, name: str | None, values: Sequence[Any]) -> str:
    """The path of a preset of the heads, u and w that the components have."""
    where = asked(("-", *values[1:]))[GUIDED].control[0].where
    model = values[4 + NAMES.index("model")]
    stem = re.sub(r"[^\w-]+", "-", name or "").strip("-")[:40] or f"{model.split('/')[-1]}-own"
    with frame.engine.pipe(model) as pipe:
        preset = HeadPreset(
            name=stem, heads=text_of(pool(pipe, where)), u=values[2], strength=values[3], source="app",
            status="unmeasured", **described(pipe, model),
        )  # fmt: skip
    return str(write_preset(preset, visit.new_folder("preset") / f"{stem}.json"))


def restored(frame: Frame, path: str | None) -> list[Any]:
    """Values of all components as they made a recipe, and what is to be said."""
    recipe = frame.read(path)
    found = next((control for control in recipe.control if isinstance(control, SoftPAG)), None)
    if found is None:
        raise ControlError("this recipe has no guidance by heads; drop one of a guided or perturbed picture made here")
    where = {name: text for name, text in found.where.model_dump().items() if name != "heads" and text != "all"}
    lost: list[str] = [control.kind for control in recipe.control if control is not found]
    lost += [f"{len(recipe.prompts) - 1} more prompts"] * (len(recipe.prompts) > 1)
    lost += [f"target {found.target}"] * (found.target != "identity") + ["image rows"] * (found.rows != "all")
    lost += ["a u for each head"] * isinstance(found.u, tuple) + [f"w {found.strength:g}"] * (
        found.strength > LARGEST_W
    )
    u = max(found.u) if isinstance(found.u, tuple) else found.u
    says = f"Restored, without {', '.join(lost)}, which this tab has not." if lost else "Restored."
    heads, w = found.where.heads.replace(",", " "), min(found.strength, LARGEST_W)
    return [recipe.prompts[0], heads, u, w, *Settings.restored(recipe, where), look.said(says)]
