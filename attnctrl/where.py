"""`Where`: the one notation for blocks, heads and steps, in Python, recipes, the command line and the app."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field, field_validator

from .descriptions import Description
from .errors import ControlError
from .layout import Site, Step

_BLOCKS = re.compile(r"(?:(?P<stream>[a-z]+):)?L?(?P<first>\d{1,6})(?:-L?(?P<last>\d{1,6}))?(?:/(?P<stride>\d{1,6}))?")
_HEAD = re.compile(r"(?:L(?P<block>\d{1,6}))?H(?P<head>\d{1,6})")
_STEPS = re.compile(r"(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?")
_PART = re.compile(r"(?P<first>\d{1,6}(?:\.\d{1,9})?)%-(?P<last>\d{1,6}(?:\.\d{1,9})?)%")


class Where(Description):
    """Blocks, heads and steps at which a control acts.

    blocks: comma-separated; `all`, a stream (`single`), a group (`late`: FLUX's single-stream blocks, the last two
        thirds of SD3's; `middle`, `last`: thirds; `vital`: FreeCus' ten of FLUX.1 and the same depths elsewhere;
        `editable`: FLUX's single-stream blocks, all of SD3's; `final`: the last 6 of FLUX.1's 57, 5 of SD3's 24),
        global numbers `19`, `19-56`, every n-th `19-56/2`, or numbers within a stream `single:0-5`. A list of ints is
        accepted.
    heads: `all`, `H3` (in every chosen block) or `L14H7`; separated by commas or spaces.
    steps: `all`, indices from 0 `0-9` (both ends count), or part of the schedule `0%-40%` (the end does not); a part
    in which no step begins
        is the step that it lies in.
        A pair of floats (0.0, 0.4) is accepted.
    Raises ValidationError for what it cannot read.
    """

    blocks: str = Field("all", description="all, a stream or group (single, late), 19-56, 0-56/2, single:0-5")
    heads: str = Field("all", description="all, H3 in every chosen block, or L14H7 L14H17")
    steps: str = Field("all", description="all, 0-9 (both ends count), or 0%-40% of the schedule")

    @field_validator("blocks", mode="before")
    @classmethod
    def _read_blocks(cls, value: Any) -> str:
        text = _joined(value)
        for item in _items(text):
            match = _BLOCKS.fullmatch(item)
            if not (match or re.fullmatch("[a-z]+", item)):
                raise ValueError(f"blocks: cannot read {item!r}; write for example single, 19-56 or double:0-4")
            if match and match["stride"] is not None and not int(match["stride"]):
                raise ValueError(f"blocks: {item!r} takes no step; write every second block as 0-4/2")
            _forward(match, "blocks")
        return text

    @field_validator("heads", mode="before")
    @classmethod
    def _read_heads(cls, value: Any) -> str:
        text = ",".join(_joined(value).replace(",", " ").split())
        if text != "all" and not all(_HEAD.fullmatch(item) for item in _items(text)):
            raise ValueError(f"heads: cannot read {text!r}; write for example L14H7 L14H17, H3 or all")
        return text

    @field_validator("steps", mode="before")
    @classmethod
    def _read_steps(cls, value: Any) -> str:
        if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(x, float) for x in value):
            value = f"{value[0] * 100:g}%-{value[1] * 100:g}%"
        text = _joined(value)
        for item in _items(text):
            match = _STEPS.fullmatch(item) or _PART.fullmatch(item)
            if not (match or item == "all"):
                raise ValueError(f"steps: cannot read {item!r}; write for example 0-9, 0%-40% or all")
            _forward(match, "steps")
            if item.endswith("%") and match and float(match["last"]) > 100:
                raise ValueError(f"steps: {item!r} goes beyond the schedule, which ends at 100%")
        return text

    def select(self, sites: Sequence[Site]) -> dict[int, tuple[int, ...] | None]:
        """The places in `sites` of the chosen ones, each with its chosen heads (None: all of them).

        Raises ControlError for a stream, block or head that the model does not have.
        """
        chosen = sorted({place for item in _items(self.blocks) for place in _blocks(item, sites)})
        if self.heads == "all":
            return dict.fromkeys(chosen)
        heads: dict[int, set[int]] = {}
        for item in _items(self.heads):
            match = _HEAD.fullmatch(item)
            assert match
            block, head = match["block"], int(match["head"])
            meant = [i for i, site in enumerate(sites) if (i in chosen if block is None else site.index == int(block))]
            if block is not None and not meant:
                raise ControlError(f"heads: {item} names block {block}; this model has blocks 0-{sites[-1].index}")
            for place in meant:
                if head >= sites[place].heads:
                    label, count = sites[place].index, sites[place].heads
                    raise ControlError(f"heads: {item}; block {label} has heads 0-{count - 1}")
                if place in chosen:
                    heads.setdefault(place, set()).add(head)
        return {place: tuple(sorted(numbers)) for place, numbers in sorted(heads.items())}

    def acts_at(self, step: Step) -> bool:
        """Whether `step` is among the chosen ones."""
        return any(_contains(item, step) for item in _items(self.steps))

    def may_meet(self, other: Where) -> bool:
        """Whether some step of some schedule could be in both (indices against percentages: assumed so)."""
        for a in _items(self.steps):
            for b in _items(other.steps):
                spans = [_STEPS.fullmatch(x) for x in (a, b)], [_PART.fullmatch(x) for x in (a, b)]
                for indices, closed in zip(spans, (True, False), strict=True):
                    if all(indices):
                        (a0, a1), (b0, b1) = (_span(m) for m in indices if m)
                        if max(a0, b0) < min(a1, b1) or (closed and max(a0, b0) == min(a1, b1)):
                            return True
                        break
                else:
                    return True
        return False


def listed_heads(text: str) -> list[tuple[int | None, int]]:
    """What a text such as `L14H7, H3` lists, as (block or None, head); nothing for `all`."""
    found = [_HEAD.fullmatch(item) for item in text.replace(",", " ").split()]
    return [(None if m["block"] is None else int(m["block"]), int(m["head"])) for m in found if m]


def _contains(item: str, step: Step) -> bool:
    if part := _PART.fullmatch(item):
        first, last = float(part["first"]), float(part["last"])
        if _begins(first, last, step.count):
            return first <= 100 * step.index / step.count < last
        return step.index == min(int(first * step.count / 100), step.count - 1)
    if whole := _STEPS.fullmatch(item):
        return int(whole["first"]) <= step.index <= int(whole["last"] or whole["first"])
    return item == "all"


def _begins(first: float, last: float, count: int) -> bool:
    """Whether any of so many steps begins in a part of the schedule, in percent."""
    near = int(first * count / 100)
    return any(first <= 100 * index / count < last for index in range(near, min(near + 2, count)))


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _joined(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Iterable):
        items = [str(x) for x in value]
        if items:
            return ",".join(items)
    raise ValueError(f"expected text, a number or a list, got {value!r}")


def _span(match: re.Match[str]) -> tuple[float, float]:
    return float(match["first"]), float(match["last"] or match["first"])


def _forward(match: re.Match[str] | None, what: str) -> None:
    if match and match["last"] is not None and float(match["last"]) < float(match["first"]):
        raise ValueError(f"{what}: the range {match[0]!r} runs backwards")


def _blocks(item: str, sites: Sequence[Site]) -> list[int]:
    """The places in `sites` that one item names."""
    match = _BLOCKS.fullmatch(item)
    stream = match["stream"] if match else item
    if item == "all":
        return list(range(len(sites)))
    streams, groups = {site.stream for site in sites}, {name for site in sites for name in site.groups}
    if stream is not None and stream not in streams and (match or stream not in groups):
        names = ", ".join([*sorted(streams), *sorted(groups)])
        raise ControlError(f"blocks: this model has no stream {stream!r}; it has {names}")
    if not match:
        return [i for i, site in enumerate(sites) if stream == site.stream or stream in site.groups]
    numbers = [site.local if stream else site.index for site in sites]
    within = [i for i, site in enumerate(sites) if stream in (None, site.stream)]
    known = sorted({numbers[i] for i in within})
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if last > known[-1] or first < known[0]:
        span = f"{stream + ' ' if stream else ''}blocks {known[0]}-{known[-1]}"
        raise ControlError(f"blocks: {item} is out of range; this model has {span}")
    wanted = range(first, last + 1, int(match["stride"] or 1))
    return [i for i in within if numbers[i] in wanted]
