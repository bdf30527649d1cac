"""What a controlled processor owes to the stock one that it stands for."""

from __future__ import annotations

from typing import Any

from ..errors import ControlError
from ..layout import Site


class OfStock:
    """An attribute of a processor's `stock`, which diffusers sets from outside."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, processor: Any, owner: Any = None) -> Any:
        return self if processor is None else getattr(processor.stock, self.name)

    def __set__(self, processor: Any, value: Any) -> None:
        setattr(processor.stock, self.name, value)


def not_ours(site: Site) -> ControlError:
    """The fault of a site where an unknown processor stands."""
    return ControlError(
        f"{site.label} has a {type(site.module.processor).__name__}, which a control here cannot carry: "
        "choose other blocks, or put the model's own processors back"
    )
