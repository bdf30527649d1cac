"""`controlled`: any diffusers pipeline class of a known architecture, with `control=`."""

from __future__ import annotations

import difflib
import functools
from typing import Any

import diffusers

from ..errors import ControlError
from ..given import shown
from ..processors.attaching import known_hosts
from .flux import ControlledFluxPipeline
from .mixin import ControlledPipeline
from .sd3 import ControlledStableDiffusion3Pipeline


@functools.cache
def controlled(cls: type[Any]) -> type[ControlledPipeline]:
    """The subclass of a diffusers pipeline class whose call takes `control=`; always the same one.

    Raises ControlError for a class whose transformer no control runs on.
    """
    if not isinstance(cls, type):
        raise ControlError(f"controlled takes a pipeline class such as diffusers.FluxPipeline, not {shown(cls)}")
    if issubclass(cls, ControlledPipeline):
        return cls
    for known in (ControlledFluxPipeline, ControlledStableDiffusion3Pipeline):
        if cls is known.stock:
            return known
    _refuse_unknown(cls)
    body = {"__doc__": f"{cls.__name__} with `control=`; everything else as in diffusers.", "__module__": __name__}
    return type(f"Controlled{cls.__name__}", (ControlledPipeline, cls), body)


def pipeline_class(name: str) -> type[Any]:
    """The diffusers pipeline class of that name; raises ControlError with near names where there is none."""
    cls = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
    if isinstance(cls, type):
        return cls
    near = difflib.get_close_matches(name, [n for n in dir(diffusers) if n.endswith("Pipeline")])
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ControlError(f"diffusers has no pipeline {name!r}{hint}")


def _refuse_unknown(cls: type[Any]) -> None:
    if hasattr(cls, "set_pag_applied_layers"):
        text = cls.__name__.replace("PAG", "")
        raise ControlError(f"{cls.__name__} exchanges attention processors by itself; load {text}")
    wanted = [host.edge.transformer for host in known_hosts()]
    types = cls._get_signature_types() if issubclass(cls, diffusers.DiffusionPipeline) else {}
    if not any(issubclass(found, known) for found in types.get("transformer", ()) for known in wanted):
        names = " or ".join(transformer.__name__ for transformer in wanted)
        raise ControlError(f"{cls.__name__} has no {names}, on which controls run")
