"""The command line: attnctrl demo, generate, edit, run, info, methods, app, attention, eval, heads, embedded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from ..embedded import MODELS
from ..embedded.commands import app as embedded
from ..errors import ControlError
from .app_cli import app as app_command
from .asked import asked, loadable
from .attention_cli import attention
from .console import console
from .edit_cli import edit, make_edits
from .ending import STOPPED, end, keeping, quiet_others
from .eval_cli import app as eval_app
from .heads_cli import app as heads_app
from .methods_cli import Loading, methods
from .models import load_model

if TYPE_CHECKING:
    from ..pipelines.edits import EditSet
    from ..pipelines.generate import PictureSet
    from ..pipelines.recipe import Recipe

app = typer.Typer(
    cls=Loading,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(embedded, name="embedded")
app.add_typer(heads_app, name="heads")
app.add_typer(eval_app, name="eval")
app.command("app")(app_command)
app.command()(edit)
app.command()(attention)
app.command()(methods)
Model = Annotated[str, typer.Option(help=f"{', '.join(MODELS)}, a diffusers folder or a hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best one here if not given.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Offload = Annotated[str, typer.Option(help="none, model or sequential: for GPUs with little memory.")]
Out = Annotated[Path | None, typer.Option(help="A new folder for the result.")]

Load = Annotated[
    list[Path] | None,
    typer.Option(help="A Python file of your own whose controls are used; may be given again (or ATTNCTRL_LOAD)."),
]

PLAIN = "plain"
DEMO_MODEL = "tiny-sd3"
DEMO_STYLE = "sticker"
DEMO_SUBJECTS = ("a mushroom", "a rocket", "a penguin", "a butterfly")
DEMO_STRENGTH = 0.5


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"attnctrl {version('attnctrl')}")
        raise typer.Exit


@app.callback()
def begin(
    load: Load = None,
    version: Annotated[
        bool, typer.Option("--version", help="Say the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Control the attention of diffusion transformers, without training."""
    from ..registry import load_file

    for path in load or ():
        load_file(path)


@app.command()
def demo(
    out: Out = None, seed: Annotated[int, typer.Option(help="Picture i has seed + i.", min=0, max=2**62)] = 3
) -> None:
    """Make a set in one style with the embedded model: once plain, once aligned."""
    with _folder(out, "demo") as folder:
        from ..pipelines.generate import sheet_row, write_set
        from ..pipelines.recipe import Recipe
        from ..processors import AlignedStyle

        pipe = load_model(DEMO_MODEL, None)
        prompts = tuple(f"{subject}, {DEMO_STYLE}" for subject in DEMO_SUBJECTS)
        plain = _generate(pipe, Recipe(model=DEMO_MODEL, prompts=prompts, seed=seed), "plain")
        aligned = _generate(
            pipe, plain.recipe.model_copy(update={"control": (AlignedStyle(strength=DEMO_STRENGTH),)}), "aligned"
        )
        rows = [
            sheet_row(plain, "Plain: every picture finds its own style"),
            sheet_row(aligned, "Aligned: all follow the first picture"),
        ]
        heading = f"One prompt style, “{DEMO_STYLE}”, seed {seed}"
        write_set(plain, folder / "plain")
        write_set(aligned, folder / "aligned", rows, heading)
        _say_written(folder, ("aligned/sheet.png", "aligned", "plain"))


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts; the first leads the set.")],
    control: Annotated[
        list[str] | None,
        typer.Option(help="Any method with its settings: nag:prompt=blurry,phi=5. May be given again: they compose."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="A sharing method, a preset such as aligned-gentle, or plain; aligned if no --control is given."
        ),
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="A picture to follow instead of the first prompt; may be given again.")
    ] = None,
    caption: Annotated[
        list[str] | None, typer.Option(help="What the reference shows; the n-th caption is the n-th reference's.")
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(help="White where the reference is read, such as its subject; likewise.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="The style's odds of the shared tokens: 0 off, 1 as published (the default).")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Guide by heads: L14H7,L14H17, or a preset (attnctrl heads presets).")
    ] = None,
    head_strength: Annotated[float | None, typer.Option(help="Their w; the preset's if not given.")] = None,
    u: Annotated[float | None, typer.Option("--u", help="Their u, 0 to 1; the preset's if not given.")] = None,
    blocks: Annotated[str | None, typer.Option(help="The style's blocks: single, 19-56, double:0-4, 0-56/2.")] = None,
    at_steps: Annotated[str | None, typer.Option(help="The style's steps: 0-9 or 0%-40%.")] = None,
    model: Model = "tiny-sd3",
    steps: Annotated[int | None, typer.Option(help="Solver steps; the model's own number if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Picture i has seed + i.")] = 0,
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or 80x48 (width x height).")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="For classifier-free guidance.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="FLUX: the distilled guidance; SD3: classifier-free guidance.")
    ] = None,
    true_cfg_scale: Annotated[
        float | None, typer.Option(help="FLUX's classifier-free guidance; over 1 doubles the time.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures computed together.")] = 8,
    panorama: Annotated[
        float | None,
        typer.Option(help="One wide picture, a prompt a window; the share of a window that the next one covers: 0.5."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    out: Out = None,
) -> None:
    """Make a set of pictures that share one style, or one subject, or are under any other control."""
    from ..pipelines.checks import check_before, warn_of_doubts
    from ..pipelines.recipe import Recipe
    from ..registry import controls_of
    from .options import references_of, size_of, style_of

    given = controls_of(control)
    style = (PLAIN if control else "aligned") if style is None else style
    controls = (*style_of(style, strength, blocks, at_steps, references_of(reference, caption, mask)), *given)
    if any(one.leads for one in controls) and len(prompts) < 2:
        raise ControlError(
            "one prompt has nothing to share a style with: give two or more prompts, --reference PICTURE, "
            "or --style plain"
        )
    values: dict[str, Any] = {
        "model": model, "prompts": tuple(prompts), "control": controls, "seed": seed, "num_inference_steps": steps,
        "negative_prompt": negative_prompt, "guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale,
        "batch_size": batch_size, "panorama": panorama, **size_of(size),
    }  # fmt: skip
    if heads is None and (head_strength is not None or u is not None):
        raise ControlError("--head-strength and --u belong to --heads; name heads or a preset")
    recipe = Recipe(**values)
    if heads is not None:
        from ..pipelines.presets import preset_before

        preset_before(heads, model, head_strength, u)
    loadable(device, dtype, offload)
    check_before(recipe)
    with _folder(out, "set") as folder:
        warn_of_doubts(model, recipe.prompts)
        pipe = load_model(model, device, dtype, offload)
        if heads is not None:
            from ..pipelines.presets import preset_of

            guided = preset_of(heads, model, pipe, head_strength, u).control()
            recipe = recipe.model_copy(update={"control": (*controls, guided)})
        _make(pipe, recipe, folder)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe.json, or a PNG made by attnctrl.")],
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    out: Out = None,
) -> None:
    """Replay a recipe; says whether the pictures came out the same, pixel for pixel."""
    from ..pipelines.checks import check_before, warn_of_doubts
    from ..pipelines.recipe import EditRecipe, read_recipe

    earlier = read_recipe(recipe)
    before = earlier.environment
    if before is not None:
        device, dtype = device or before.device, dtype or before.dtype
    loadable(device, dtype, offload)
    check_before(earlier)
    with _folder(out, "replay") as folder:
        if before is not None:
            import torch

            torch.set_num_threads(before.threads)
        warn_of_doubts(earlier.model, earlier.said)
        pipe = load_model(earlier.model, device, dtype, offload)
        result: EditSet | PictureSet
        result = make_edits(pipe, earlier, folder) if isinstance(earlier, EditRecipe) else _make(pipe, earlier, folder)
    if earlier.made:
        same, now = result.recipe.same_as(earlier), result.recipe.environment
        console.print(f"{same} of {len(earlier.made)} pictures are identical to the recipe's")
        if same < len(earlier.made):
            console.print(f"made then with {before}\nand now with {now}", highlight=False)


@app.command()
def info(
    model: Model = "tiny-sd3",
) -> None:
    """Show a model's blocks as --blocks names them, and its own settings."""
    asked(model, None)
    from ..processors.attaching import host_of

    pipe = load_model(model, "cpu", None, "none")
    host = host_of(pipe)
    table = Table("block", "stream", "in stream", "heads", title=f"{model} ({host.edge.name})")
    for site in host.sites:
        table.add_row(f"L{site.index}", site.stream, f"{site.stream}:{site.local}", f"H0-H{site.heads - 1}")
    console.print(table)
    for name, value in pipe.settings.given().items():
        console.print(f"{name}: {value!r}", highlight=False)


def main() -> None:
    """Run the command line; whatever goes wrong ends with one line, a mistake of the user's with exit code 2."""
    quiet_others()
    try:
        code = app(standalone_mode=False)
    except SystemExit:
        raise
    except BaseException as fault:
        sys.exit(end(fault))
    if code == STOPPED:
        sys.exit(end(KeyboardInterrupt()))
    sys.exit(code if isinstance(code, int) else 0)


def _generate(pipe: Any, recipe: Recipe, title: str) -> PictureSet:
    from ..pipelines.generate import generate

    with Progress(*Progress.get_default_columns()[:3], TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=None)
        step: Callable[[int, int], None] = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        return generate(pipe, recipe, step)


def _make(pipe: Any, recipe: Recipe, folder: Path) -> PictureSet:
    from ..pipelines.generate import write_set

    result = _generate(pipe, recipe, "pictures")
    write_set(result, folder)
    _say_written(folder, ("sheet.png", "recipe.json"))
    return result


@contextmanager
def _folder(out: Path | None, stem: str) -> Iterator[Path]:
    """A folder that is held for the result; the next free one in attnctrl-out if none is named."""
    from ..pipelines.folders import free_folder, reserved

    with reserved(free_folder(stem) if out is None else out) as folder, keeping("no picture was written"):
        yield folder


def _say_written(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        console.print(str(folder / name), highlight=False, soft_wrap=True)
