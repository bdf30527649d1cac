"""The registry: every control by its kind; built in, installed beside the package, or in a file of your own."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import ValidationError

from .descriptions import settings_of
from .errors import ControlError
from .written import read_settings, refusal

if TYPE_CHECKING:
    from .control import Control, Preset

C = TypeVar("C", bound="type[Control]")

ENTRY_POINTS, LOAD = "attnctrl.controls", "ATTNCTRL_LOAD"
FAMILIES = ("sharing", "editing", "guidance", "other")
RESERVED = ("plain", "copy")
"""What the command line and evaluations call a picture without a control, and the leader's copy."""
_KIND = re.compile(r"[a-z][a-z0-9_-]*")
_REGISTERS = re.compile(r"^@register$", re.MULTILINE)
"""What a method's file holds; the machinery beside it needs torch, and a list of methods does not."""

# the one table of the package that grows: by imports alone, under the lock
_lock = threading.RLock()
_controls: dict[str, type[Control]] = {}
_loaded: dict[Path, None] = {}
_searched: set[str] = set()


def register(cls: C) -> C:
    """Make a Control known by its `kind`: on the command line, in recipes, evaluations and the app; a decorator.

    Raises ControlError for a kind that another class has, or that cannot be written (lower-case letters, digits, - _).
    """
    from .control import Control

    if not (isinstance(cls, type) and issubclass(cls, Control)) or inspect.isabstract(cls):
        raise ControlError(f"{getattr(cls, '__name__', cls)!r} is no control that can be planned; subclass Control")
    model: type[Control] = cls
    field = model.model_fields["kind"]
    kind = field.default
    if cls.family not in FAMILIES:
        raise ControlError(f"{cls.__name__} is of the family {cls.family!r}; choose {', '.join(FAMILIES)}")
    if get_args(field.annotation) != (kind,) or not _KIND.fullmatch(kind) or kind in RESERVED:
        raise ControlError(
            f'{cls.__name__} has no kind of its own; write kind: Literal["mine"] = "mine" in lower-case letters, '
            f"not {' or '.join(RESERVED)}"
        )
    with _lock:
        other = _controls.get(kind)
        if other is not None and _place(other) != _place(cls):  # a class made anew at its place takes its place
            raise ControlError(f"two controls are called {kind!r}: {_place(other)} and {_place(cls)}; rename yours")
        others = {name: one for name, one in _controls.items() if name != kind}
        taken = {*others, *RESERVED, *(name for one in others.values() for name in one.presets)}
        for name in (kind, *cls.presets):
            if name in taken or (name != kind and not _KIND.fullmatch(name)):
                raise ControlError(f"{cls.__name__}: {name!r} cannot be a name, or is another's; rename yours")
        _controls[kind] = cls
    return cls


def controls(family: str | None = None) -> dict[str, type[Control]]:
    """Every control by its kind, or those of a family: sharing, editing, guidance and others, each by name.

    Raises ControlError for a file that ATTNCTRL_LOAD names and that cannot be loaded.
    """
    with _lock:
        _search()
        found = sorted(_controls.items(), key=lambda one: (FAMILIES.index(one[1].family), one[0]))
    return {kind: cls for kind, cls in found if family in (None, cls.family)}


def presets(family: str | None = None) -> dict[str, Preset]:
    """Every preset of every control by its name, or those of a family."""
    return {name: preset for cls in controls(family).values() for name, preset in cls.presets.items()}


def preset_named(control: Control) -> str:
    """The preset that a control is in all but its strength, place and pictures; its kind if it is none."""
    own = {name for name in ("strength", "where", "reference") if name in type(control).model_fields}
    given = {name: getattr(control, name) for name in own}
    return next(
        (name for name in type(control).presets if control_of({"kind": name, **given}) == control), control.kind
    )


def control_class(kind: str) -> type[Control]:
    """The control of a kind or of a preset; ControlError with near names where there is none."""
    known = controls()
    found = known | {name: cls for cls in known.values() for name in cls.presets}
    if kind in found:
        return found[kind]
    near = get_close_matches(str(kind), found, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ControlError(
        f"there is no control {kind!r}; {hint}known: {', '.join(known)}; "
        "a control of your own is loaded with --load FILE.py"
    )


def control_of(value: Any) -> Control:
    """The control that a recipe's entry describes, a dict with its kind or preset, or the registered one that it is.

    Raises ControlError for another thing, ValidationError for settings that do not fit.
    """
    from .control import Control

    if isinstance(value, Control):
        known = controls().get(value.kind)
        if known is None or _place(known) != _place(type(value)):
            raise ControlError(f"{type(value).__name__} is not registered; put @attnctrl.register above the class")
        return value
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise ControlError(
            f'a control is described by its kind and settings, {{"kind": "nag", ...}}, not {str(value)[:80]!r}'
        )
    return control_class(value["kind"]).model_validate(_settled(value["kind"], value))


def parse_control(text: str) -> Control:
    """The control that a text describes: `nag:prompt="blurry, dark",phi=5,blocks=late`, `aligned-gentle:strength=0.5`.

    Raises ControlError, which names the control, the setting and what it takes.
    """
    kind, _, settings = text.partition(":")
    cls = control_class(kind.strip())
    return _made(cls, _settled(kind.strip(), read_settings(cls, kind.strip(), settings)))


def controls_of(value: Any) -> tuple[Control, ...]:
    """What `control=` may be, as controls: None, a control, its class, a text as in parse_control, or several of these.

    Raises ControlError for anything else.
    """
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(_one(one) for one in value)
    return (_one(value),)


def load_file(path: str | Path) -> None:
    """Run a Python file of the user's own, which registers controls; once, however often it is asked for.

    Raises ControlError for a file that is missing or that fails; nothing of it stays.
    """
    file = Path(path).expanduser().resolve()
    with _lock:
        if file in _loaded:
            return
        if not file.is_file():
            raise ControlError(f"--load {path}: there is no such file")
        name = f"attnctrl_loaded_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{file.stem}"
        spec = spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ControlError(f"--load {path}: is no Python file; name it FILE.py")
        module, before = module_from_spec(spec), dict(_controls)
        sys.modules[name], _loaded[file] = module, None
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as fault:
            del sys.modules[name], _loaded[file]
            _controls.clear()
            _controls.update(before)
            raise ControlError(f"--load {path}: {_told(fault, file)}") from fault


def described() -> dict[str, dict[str, Any]]:
    """What can be said of every control, by kind: title, family, what it does, source, settings; for lists and APIs."""
    return {
        kind: {
            "title": cls.title or cls.__name__,
            "family": cls.family,
            "says": says(cls),
            "source": cls.source,
            "settings": {
                one.name: {"says": one.says, "takes": one.takes, "default": one.default} for one in settings_of(cls)
            },
            "presets": {name: {"title": one.title, "says": one.says} for name, one in cls.presets.items()},
        }
        for kind, cls in controls().items()
    }


def says(cls: type[Control]) -> str:
    """What a control does, in one line."""
    return ((cls.__doc__ or cls.__name__).strip().splitlines() or [""])[0]


def _search() -> None:
    """Import what may register controls: the methods of processors/, entry points, the files of ATTNCTRL_LOAD."""
    if "processors" not in _searched:
        _searched.add("processors")
        package = import_module(f"{__package__}.processors")
        for file in sorted(one for folder in package.__path__ for one in Path(folder).glob("*.py")):
            if _REGISTERS.search(file.read_text(encoding="utf-8")):
                import_module(f"{package.__name__}.{file.stem}")
    if "entry points" not in _searched:
        _searched.add("entry points")
        for point in entry_points(group=ENTRY_POINTS):
            try:
                point.load()
            except Exception as fault:
                text = f"the controls of {point.value} cannot be loaded and are missing: {fault}"
                warnings.warn(text, UserWarning, stacklevel=4)
    for path in filter(None, os.environ.get(LOAD, "").split(os.pathsep)):
        load_file(path)


def _one(value: Any) -> Control:
    from .control import Control

    if isinstance(value, Control):
        return value
    if isinstance(value, str):
        return parse_control(value)
    if isinstance(value, type) and issubclass(value, Control):
        if inspect.isabstract(value):
            raise ControlError(
                f"{value.__name__} is the base of controls and none itself; known: {', '.join(controls())}"
            )
        return _made(value, {})
    what = repr(value)[:40] if isinstance(value, (int, float, bytes)) else f"a {type(value).__name__}"
    raise ControlError(
        f"{what} is no control; give a control, its class, a text such as 'nag:prompt=blurry', or a list"
    )


def _made(cls: type[Control], body: dict[str, Any]) -> Control:
    try:
        return cls.model_validate(body)
    except ValidationError as fault:
        raise refusal(cls, cls.model_fields["kind"].default, fault) from None


def _settled(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What is given, laid over the settings of a preset of that name."""
    preset = presets().get(name)
    if preset is None:
        return given
    body = {**preset.settings, **given}
    where, own = (one.get("where") for one in (preset.settings, given))
    if isinstance(where, dict) and isinstance(own, dict):
        body["where"] = {**where, **own}
    body.pop("kind", None)
    return body


def _place(cls: type[Control]) -> str:
    """Where a class is written: two classes of one place are one, imported twice or made anew."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{cls.__qualname__} in {file or cls.__module__}"


def _told(fault: BaseException, file: Path) -> str:
    """A fault of the user's file in one line, with the line where it is theirs."""
    frames = traceback.extract_tb(fault.__traceback__)
    line = getattr(fault, "lineno", None) or next((one.lineno for one in frames if one.filename == str(file)), None)
    kind = "" if isinstance(fault, ControlError) else f"{type(fault).__name__}: "
    return f"{kind}{' '.join(str(fault).split())[:200]}{f' (line {line})' if line else ''}"
