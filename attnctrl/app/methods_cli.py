"""`attnctrl methods`, and `--load`, which makes more of them known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from .console import console

if TYPE_CHECKING:
    from ..control import Control
    from ..descriptions import Setting


class Loading(TyperGroup):
    """A group whose `--load FILE.py` may stand anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Files first, so that what follows knows their controls."""
        ends = args.index("--") if "--" in args else len(args)
        first: list[str] = []
        rest: list[str] = []
        words = iter(args[:ends])
        for word in words:
            if word == "--load":
                first += [word, next(words, None) or ctx.fail("--load needs a FILE.py")]
            else:
                (first if word.startswith("--load=") else rest).append(word)
        parsed: list[str] = super().parse_args(ctx, [*first, *rest, *args[ends:]])
        return parsed


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Of these only; all if not given.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/methods.md.")] = False,
) -> None:
    """List the methods, and every setting with its meaning, what it takes, and its default."""
    from ..registry import control_class, controls

    wanted = [control_class(name) for name in names or ()]
    chosen = {kind: cls for kind, cls in controls().items() if cls in wanted} if names else controls()
    if markdown:
        typer.echo("\n".join(page(chosen)))
        return
    for line in listing(chosen):
        console.print(line, highlight=False, soft_wrap=True)


def listing(chosen: dict[str, type[Control]]) -> Iterator[str]:
    """For the terminal, with rich's markup; the parts of nested settings once, at the end."""
    from ..descriptions import settings_of
    from ..registry import says

    for kind, cls in chosen.items():
        source = f"  [dim]{escape(cls.source)}[/]" if cls.source else ""
        yield f"[bold]{kind}[/]  {escape(says(cls))}{source}"
        for one in settings_of(cls):
            usual = "required" if one.default is None else one.default
            yield f"    {one.name} = {escape(usual)}  [dim]{escape(one.says)} ({escape(one.takes)})[/]"
        for name, preset in cls.presets.items():
            yield f"[bold]{name}[/]  {escape(preset.says)}  [dim]a preset of {kind}[/]"
    for name, inner in _parts(chosen).items():
        yield f"[bold]{name}.[/]  {escape((inner.__doc__ or name).splitlines()[0])}"
        for one in settings_of(inner):
            usual = "required" if one.default is None else one.default
            yield f"    {name}.{one.name} = {escape(usual)}  [dim]{escape(one.says)} ({escape(one.takes)})[/]"


def page(chosen: dict[str, type[Control]]) -> Iterator[str]:
    """The same as Markdown: a table a method, and one for each setting that has parts."""
    from ..descriptions import settings_of
    from ..registry import says
    from ..where import Where

    yield "# The methods"
    yield ""
    yield "Written by `attnctrl methods --markdown > docs/methods.md` from the registry. Settings are given as"
    yield '`--control nag:prompt="blurry, dark",phi=5,blocks=late`, in recipes as JSON, in Python as arguments.'
    for kind, cls in chosen.items():
        settings = {one.name: one for one in settings_of(cls)}
        where = [f"{name} `{settings.pop(name).default}`" for name in Where.model_fields]
        yield from ["", f"## {kind}", "", f"{says(cls)} {cls.source}".strip(), ""]
        yield from [f"`{cls.__name__}`, {cls.family}; {', '.join(where)}.", "", *_table(settings.values())]
        for name, preset in cls.presets.items():
            yield from ["", f"Preset `{name}`: {preset.says}"]
    for name, inner in {"where": Where, **_parts(chosen)}.items():
        yield from ["", f"## The parts of `{name}`", "", (inner.__doc__ or "").splitlines()[0], ""]
        yield from _table(settings_of(inner))


def _table(settings: Iterable[Setting]) -> Iterator[str]:
    yield "| setting | default | | takes |"
    yield "|---|---|---|---|"
    for one in settings:
        usual = "required" if one.default is None else f"`{one.default}`" if one.default else ""
        yield f"| `{one.name}` | {usual} | {one.says} | {one.takes} |"


def _parts(chosen: dict[str, type[Control]]) -> dict[str, Any]:
    """The settings that have parts, but `where`, whose parts are settings themselves."""
    from ..descriptions import nested

    fields = [item for cls in chosen.values() for item in cls.model_fields.items() if item[0] != "where"]
    return {name: inner for name, field in fields for inner in nested(field)}
