"""Descriptions: data that can be stored; their numbers are finite, and every setting says what it is and takes."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

_TAGS = {"bool", "float", "int", "none", "str"}


class Description(BaseModel):
    """Base of all descriptions: immutable, no unknown settings, no NaN and no infinity, and no bool for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1."""
        if _holds_truth(value) and not {bool, Any} & set(leaves(cls.model_fields[str(info.field_name)].annotation)):
            raise PydanticCustomError("truth", "Input should not be true or false")
        return value


@dataclass(frozen=True)
class Setting:
    """One setting of a description: its name, what it means, what it takes, and its default (None: required)."""

    name: str
    says: str
    takes: str
    default: str | None


def settings_of(cls: type[BaseModel]) -> tuple[Setting, ...]:
    """The settings of a description; `where` by its parts, which have short names."""
    found = []
    for name, field in cls.model_fields.items():
        if name == "where" and (parts := nested(field)):
            found += [
                Setting(part, inner.description or "", takes(inner), str(getattr(field.default, part)))
                for part, inner in parts[0].model_fields.items()
            ]
        elif name != "kind":
            found.append(Setting(name, _says(cls, name), takes(field), shown_default(field)))
    return tuple(found)


def _says(cls: type[BaseModel], name: str) -> str:
    """A setting's description; one with another default has its base's."""
    fields = (base.model_fields.get(name) for base in cls.__mro__ if issubclass(base, BaseModel))
    return next((field.description for field in fields if field and field.description), "")


def nested(field: FieldInfo) -> list[type[BaseModel]]:
    """The descriptions that a setting may hold."""
    return [leaf for leaf in leaves(field.annotation) if isinstance(leaf, type) and issubclass(leaf, BaseModel)]


def takes(field: FieldInfo) -> str:
    """What a setting takes, for people: `a number from 0 to 1, or none`."""
    found = list(dict.fromkeys(_named(field.annotation, _bounds(field.metadata))))
    return _joined(["several" if one.startswith("several, each ") and one[14:] in found else one for one in found])


def shown_default(field: FieldInfo) -> str | None:
    """A setting's default, as users write it; None where it is required."""
    if field.is_required():
        return None
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    return written(value)


def written(value: Any) -> str:
    """A value as users write it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ":".join(map(written, value)) if isinstance(value, tuple) else str(value)


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types of which a setting takes one: those of a union, without their bounds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from alternatives(one)
    else:
        yield annotation


def leaves(annotation: Any) -> Iterator[Any]:
    """The same, with what tuples and other containers hold."""
    for one in alternatives(annotation):
        if get_origin(one) in (None, Literal):
            yield one
        else:
            for inner in get_args(one):
                yield from leaves(inner)


@dataclass(frozen=True)
class Fault:
    """What a validation says first: where (names and numbers), what, pydantic's name for it, how many more faults."""

    place: tuple[str, ...]
    text: str
    kind: str
    more: int


def fault_of(error: ValidationError) -> Fault:
    """The first fault of a validation; where all alternatives of a setting fail, the furthest one's, ours first."""
    found = error.errors(include_url=False)
    loc = found[0]["loc"]
    union = next((i for i, part in enumerate(loc) if not _is_place(part)), None)
    rivals = found[:1] if union is None else [one for one in found if one["loc"][:union] == loc[:union]]
    told = max(rivals, key=lambda one: (len(one["loc"]), one["type"] == "value_error"))
    place = tuple(str(part) for part in told["loc"] if _is_place(part))
    text = told["msg"].removeprefix("Value error, ").removeprefix(f"{place[-1]}: " if place else "")
    return Fault(place, text, told["type"], len(found) - len(rivals))


def explain(error: ValidationError) -> str:
    """The first fault of a validation, as one line: where and what."""
    fault = fault_of(error)
    more = f" (and {fault.more} more)" if fault.more else ""
    return ": ".join([*([".".join(fault.place)] if fault.place else []), fault.text]) + more


def numbers_in(value: Any) -> Iterator[float]:
    """The fractional numbers of a setting, in its tuples and descriptions too."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from numbers_in(one)
    elif isinstance(value, Description):
        for name in type(value).model_fields:
            yield from numbers_in(getattr(value, name))


def _is_place(part: str | int) -> bool:
    """Whether a part of a fault's place is a setting or a number, and not pydantic's name for an alternative."""
    return isinstance(part, int) or bool(re.fullmatch("[a-z_][a-z0-9_]*", part) and part not in _TAGS)


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, (list, tuple)) and any(map(_holds_truth, value)))


def _named(annotation: Any, bounds: str) -> Iterator[str]:
    """Names for the alternatives of an annotation."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _named(args[0], _bounds(args[1:]) or bounds)
    elif origin in (Union, types.UnionType):
        for one in args:
            yield from _named(one, bounds)
    elif origin is Literal:
        yield from map(str, args)
    elif origin is tuple and args[-1] is not Ellipsis:
        yield f"{len(args)}, each {_joined(list(_named(args[0], bounds)))}, by colon"
    elif origin is tuple:
        yield f"several, each {_joined(list(_named(args[0], bounds)))}"
    else:
        usual = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
        if annotation in (int, float):
            yield f"{usual[annotation]}{bounds}"
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield f"{annotation.__name__}({', '.join(annotation.model_fields)})"
        else:
            yield usual.get(annotation, "a picture" if annotation.__name__ == "Image" else annotation.__name__)


def _bounds(metadata: Any) -> str:
    words = []
    for one in metadata:
        one = getattr(one, "metadata", None) or one  # a Field within Annotated
        for bound in one if isinstance(one, list) else [one]:
            for kind, name, word in ((Ge, "ge", "from"), (Gt, "gt", "over"), (Le, "le", "to"), (Lt, "lt", "below")):
                if isinstance(bound, kind):
                    value = getattr(bound, name)
                    if abs(value) < 2**31:  # a limit of the machine says nothing
                        words.append(f"{word} {value:g}")
    return " " + " ".join(words) if words else ""


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
