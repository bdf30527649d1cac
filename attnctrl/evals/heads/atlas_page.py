"""An atlas as one self-contained page: heat map, every picture, the heads that gain and lose most."""

from __future__ import annotations

import json
from base64 import b64encode
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ...errors import ControlError
from ..ledger import Ledger
from .atlas import GUIDED, PERTURBED, PLAIN, Atlas, save
from .atlas_maps import axes, digits, ends, heat_maps, signed
from .drawing import text_of

TEMPLATE = Path(__file__).with_name("atlas.html.jinja")
THUMBNAIL = 192
"""Pixels of a thumbnail's longer side, at most."""


def write_atlas(atlas: Atlas, ledger: Ledger) -> list[Path]:
    """atlas.html, atlas.png and atlas.json in the run's folder."""
    return [
        ledger.write("atlas.html", page(atlas)),
        save(heat_maps(atlas), atlas.folder / "atlas.png"),
        ledger.write("atlas.json", json.dumps(atlas.as_json(), indent=1, ensure_ascii=False) + "\n"),
    ]


def page(atlas: Atlas) -> str:
    """HTML that loads nothing: pictures are thumbnails in data URIs."""
    blocks, heads = axes(atlas)
    named = [(block, atlas.labels[block].partition("(")[2].rstrip(")")) for block in blocks]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=atlas.config,
        data=_data(atlas),
        streams=[list(group) for _, group in groupby(named, key=lambda one: one[1].split(" ")[0])],
        heads=heads,
        settings=_settings(atlas),
        signed=signed,
    )


def _data(atlas: Atlas) -> dict[str, Any]:
    """What the page's script reads."""
    names = list(atlas.plain)
    objectives = [
        {
            "name": name,
            "limit": atlas.limit(name),
            "largest": atlas.largest(name),
            "digits": digits(atlas.limit(name)),
            "ends": ends(atlas, name),
            "plain": atlas.plain[name],
        }
        for name in names
    ]
    cells = {
        text_of([head]): {
            "block": atlas.labels[head[0]],
            "gains": [atlas.gain(head, name) for name in names],
            "guided": [cell.guided[name] for name in names],
            "perturbed": [cell.perturbed[name] for name in names],
            "pictures": {kind: thumbnail(atlas.picture(kind, head)) for kind in (PERTURBED, GUIDED)},
        }
        for head, cell in sorted(atlas.cells.items())
    }
    return {"objectives": objectives, "plain": thumbnail(atlas.picture(PLAIN)), "cells": cells}


def _settings(atlas: Atlas) -> dict[str, str]:
    """What made the atlas, for people."""
    config, made = atlas.config, atlas.settings
    return {
        "model": config.model,
        "weights": str(config.weights),
        "prompt": config.prompt,
        "seed": str(config.seed),
        "guidance by heads": f"w {config.strength:g}, u {config.u:g}",
        "the model’s own guidance": "on" if config.cfg else "off",
        "steps": str(made["steps"] or "the model’s own number"),
        "picture": f"{made['width']} × {made['height']} px",
        "blocks": f"{config.where.blocks} ({len(atlas.cells)} heads)",
        "computed with": f"torch {made['torch']}, diffusers {made['diffusers']}, {made['dtype']} on {made['device']}",
    }


def thumbnail(path: Path) -> str:
    """A picture of at most 192 px as a data URI, PNG or JPEG, whichever is smaller."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, SyntaxError):
        raise ControlError(f"{path} is no picture; delete it, and the same command draws it again") from None
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    found = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 92})):
        body = BytesIO()
        picture.save(body, kind, **options)
        found.append(f"data:image/{kind};base64,{b64encode(body.getvalue()).decode()}")
    return min(found, key=len)
