"""What a controlled processor owes to the stock one that it stands for."""

from __future__ import annotations

from typing import Any

from ..errors import ControlError
from ..layout import Site


def of_stock(name: str) -> Any:
    """A property that is an attribute of a processor's `stock`, which diffusers sets from outside."""

    def get(processor: Any) -> Any:
        return getattr(processor.stock, name)

    def put(processor: Any, value: Any) -> None:
        setattr(processor.stock, name, value)

    return property(get, put)


def not_ours(site: Site) -> ControlError:
    """The fault of a site where an unknown processor stands."""
    return ControlError(
        f"{site.label} has a {type(site.module.processor).__name__}, which a control here cannot carry: "
        "choose other blocks, or put the model's own processors back"
    )
