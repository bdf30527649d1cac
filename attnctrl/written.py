"""Settings as users write them, `phi=5,where.blocks=late,shift=0:1`, read by what the description takes."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .descriptions import alternatives, fault_of, leaves, nested, takes
from .errors import ControlError

OWN = ""
"""Key of a node's own text, beside its parts."""
Node = dict[str, Any]
_SCALARS = (int, float, bool, str)


def read_settings(cls: type[BaseModel], name: str, text: str) -> dict[str, Any]:
    """The values that a text gives to a description's settings, ready for validation.

    `name=value` by comma; a comma within quotes or brackets belongs to the value. `a.b=` sets a part of a, `a.0.b=` of
    its first; `blocks`, `heads` and `steps` are parts of `where`. Several values: `0:1`, or JSON. A text for a
    description is its first setting. Raises ControlError, which names the settings there are.
    """
    tree: Node = {}
    for part in split(text):
        path, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not path:
            raise ControlError(
                f"{name}: cannot read {part!r}; write setting=value, and a value with a comma in quotes: "
                'setting="one, two"'
            )
        node = tree
        for step in _path(cls, path):
            node = node.setdefault(step, {})
        if OWN in node:
            raise ControlError(f"{name}: {path} is given twice")
        node[OWN] = value
    return _body(cls, tree, name)


def refusal(cls: type[BaseModel], name: str, error: ValidationError) -> ControlError:
    """A validation's first fault, with the setting and what it takes."""
    fault = fault_of(error)
    field, place = cls.model_fields.get(fault.place[0]) if fault.place else None, ".".join(fault.place)
    if field is None:
        return ControlError(f"{name}: {fault.text}")
    inner = [part for part in fault.place[1:] if not part.isdigit()]
    if fault.kind == "missing" and not fault.place[-1].isdigit():
        return ControlError(f"{name} needs {place}: write {place}=...")
    told = "" if inner or fault.kind == "value_error" else f"; {fault.place[0]} is {takes(field)}"
    return ControlError(f"{name}: {place}: {fault.text}{told}")


def split(text: str, at: str = ",") -> list[str]:
    """The parts of a text between commas that stand in no quotes and no brackets; ControlError for what is not closed.

    A quote opens at the beginning of a value, or within brackets.
    """
    parts, depth, quote, before = [""], 0, "", "="
    for letter in text:
        if quote:
            quote = "" if letter == quote and before != "\\" else quote
        elif (letter == '"' and (depth or before == "=")) or (letter == "'" and before == "="):
            quote = letter
        else:
            depth = max(0, depth + (letter in "[{(") - (letter in "]})"))
        if letter == at and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
        before = before if letter == " " and not quote else letter
    if depth or quote:
        raise ControlError(f"cannot read {text!r}: a {'quote' if quote else 'bracket'} is not closed")
    return [part.strip() for part in parts if part.strip()]


def _path(cls: type[BaseModel], path: str) -> list[str]:
    steps = path.split(".")
    return ["where", *steps] if steps[0] not in cls.model_fields and steps[0] in _short(cls) else steps


def _short(cls: type[BaseModel]) -> list[str]:
    """The settings that have short names: those of `where`."""
    return list(nested(cls.model_fields["where"])[0].model_fields) if "where" in cls.model_fields else []


def _body(cls: type[BaseModel], tree: Node, name: str) -> dict[str, Any]:
    body = {}
    for key, node in tree.items():
        if key not in cls.model_fields or key == "kind":
            known = [*(one for one in cls.model_fields if one not in ("kind", "where")), *_short(cls)]
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ControlError(f"{name} has no setting {key!r}; {hint}it has {', '.join(known)}")
        body[key] = _value(cls.model_fields[key].annotation, node, f"{name}: {key}")
    return body


def _value(annotation: Any, node: Node, name: str) -> Any:
    kinds = list(alternatives(annotation))
    inner = next((one for one in leaves(annotation) if _is_description(one)), None)
    text, parts = node.get(OWN), {key: part for key, part in node.items() if key != OWN}
    if not parts:
        return _plain(kinds, inner, text or "", name)
    own = name.split(": ")[-1]
    if inner is None:
        raise ControlError(f"{name} has no parts; write {own}=value")
    if text is None and all(key.isdigit() for key in parts) and any(get_origin(kind) is tuple for kind in kinds):
        if sorted(map(int, parts)) != list(range(len(parts))):
            raise ControlError(f"{name} is numbered {', '.join(sorted(parts))}; number from 0 on")
        return [_value(inner, parts[key], f"{name}.{key}") for key in sorted(parts, key=int)]
    first = next(iter(inner.model_fields))
    if text is not None:
        if first in parts:
            raise ControlError(f"{name} and {own}.{first} say the same; give one of them")
        parts = {first: {OWN: text}, **parts}
    return _body(inner, parts, name)


def _plain(kinds: list[Any], inner: type[BaseModel] | None, text: str, name: str) -> Any:
    """A text as one of the kinds takes it; what does not fit is left to the validation."""
    pictured = any(getattr(kind, "__name__", "") == "Image" for kind in kinds)
    several, one = any(get_origin(kind) is tuple for kind in kinds), pictured or any(kind in _SCALARS for kind in kinds)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = _unquoted(text)
        return {next(iter(inner.model_fields)): text} if inner is not None and not one else text
    if text[:1] in ("[", "{") and (several or inner):
        try:
            return json.loads(text)
        except ValueError:
            raise ControlError(f'{name}: {text} is no JSON; write [0, 1] or {{"start": 1}}') from None
    if type(None) in kinds and str not in kinds and text.lower() == "none":
        return None
    for word in (word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)):
        if str(word) == text:
            return word
    if several and inner is None and (":" in text or not one):
        return [part.strip() for part in text.split(":")]
    if inner is not None and not one:
        first, field = next(iter(inner.model_fields.items()))
        return {first: _plain(list(alternatives(field.annotation)), None, text, name)}
    return str(Path(text).expanduser()) if pictured else text


def _is_description(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _unquoted(text: str) -> str:
    if text[0] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            pass
    return text[1:-1]
