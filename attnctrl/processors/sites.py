"""The attention sites of each architecture, numbered and grouped: of a transformer, or of its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..layout import Kind, Site, groups_of

JOINT: frozenset[Kind] = frozenset(("text", "image"))
IMAGE: frozenset[Kind] = frozenset(("image",))
Found = tuple[str, int, int, Any]
"""Stream, number in its stream, heads, and the module, None where nothing is loaded."""


def flux_sites(found: Sequence[Found]) -> tuple[Site, ...]:
    """Double blocks first, as they run; the single-stream blocks are the late ones."""
    return tuple(
        Site(n, stream, local, heads, module, groups_of(n, len(found), stream == "single", stream == "single", 6 / 57))
        for n, (stream, local, heads, module) in enumerate(found)
    )


def sd3_sites(found: Sequence[Found]) -> tuple[Site, ...]:
    """A joint site a block, then the block's second attention where it has one; late: the last two thirds."""
    ordered = sorted(found, key=lambda one: (one[1], one[0] == "dual"))
    count = ordered[-1][1] + 1
    return tuple(
        Site(n, stream, n, heads, module, groups_of(n, count, 3 * n >= count), JOINT if stream == "joint" else IMAGE)
        for stream, n, heads, module in ordered
    )


def configured_sites(config: Mapping[str, Any], rotary: bool) -> tuple[Site, ...]:
    """The sites that a transformer of a configuration has; their modules are None."""
    blocks, heads = int(config["num_layers"]), int(config["num_attention_heads"])
    if rotary:
        single = int(config["num_single_layers"])
        streams = [("double", i) for i in range(blocks)] + [("single", i) for i in range(single)]
        return flux_sites([(stream, i, heads, None) for stream, i in streams])
    streams = [("joint", i) for i in range(blocks)]
    streams += [("dual", int(i)) for i in config.get("dual_attention_layers") or ()]
    return sd3_sites([(stream, i, heads, None) for stream, i in streams])
