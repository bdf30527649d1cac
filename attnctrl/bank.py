"""What outlives a transformer call: kept by name for one run of the pipeline, its size known."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Bank:
    """A run's memory: what is the same at every step (`once`), and what its owner, a control, keeps for a later call.

    It is emptied when the next run begins and when the session ends.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._kept: dict[tuple[int, Hashable], Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def keep(self, owner: object, name: Hashable, value: Any) -> None:
        """Keep a value of an owner's, in the place of an earlier one."""
        self._kept[id(owner), name] = value

    def get(self, owner: object, name: Hashable, usual: Any = None) -> Any:
        """What an owner keeps under a name."""
        return self._kept.get((id(owner), name), usual)

    def take(self, owner: object, name: Hashable) -> Any:
        """The same, handed over: the bank forgets it; None for nothing."""
        return self._kept.pop((id(owner), name), None)

    def clear(self) -> None:
        """Forget everything."""
        self._made.clear()
        self._kept.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in it."""
        return sum(_nbytes(value) for value in (*self._made.values(), *self._kept.values()))


def _nbytes(value: Any) -> int:
    if hasattr(value, "nbytes") and hasattr(value, "device"):
        return int(value.nbytes)
    if isinstance(value, dict):
        return sum(_nbytes(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_nbytes(one) for one in value)
    return sum(_nbytes(one) for one in vars(value).values()) if hasattr(value, "__dataclass_fields__") else 0
