"""What an atlas is shown as: heat maps in one PNG, and one self-contained page with every picture."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ..errors import ControlError
from ..pipelines.sheets import GAP, INK, MARGIN, PALE, PAPER
from .atlas import GUIDED, PERTURBED, PLAIN, Atlas, save
from .ledger import Ledger
from .pictures import text_of

TEMPLATE = Path(__file__).with_name("atlas.html.jinja")
LESS, NONE, MORE = (84, 52, 160), (238, 236, 232), (180, 83, 9)
"""Colours of a loss, of nothing, and of a gain, on light paper; the page has those of dark paper too."""
THUMBNAIL = 192
WIDEST = 1500


def write_atlas(atlas: Atlas, ledger: Ledger) -> list[Path]:
    """atlas.html, atlas.png and atlas.json in the run's folder."""
    return [
        ledger.write("atlas.html", page(atlas)),
        save(heat_maps(atlas), atlas.folder / "atlas.png"),
        ledger.write("atlas.json", json.dumps(atlas.as_json(), indent=1, ensure_ascii=False) + "\n"),
    ]


def page(atlas: Atlas) -> str:
    """The atlas as one HTML text that loads nothing."""
    names, blocks, columns = list(atlas.plain), *_axes(atlas)
    objectives = [
        {"name": name, "limit": atlas.limit(name), "digits": digits(atlas.limit(name)), "plain": atlas.plain[name]}
        for name in names
    ]
    data: dict[str, Any] = {
        "objectives": objectives,
        "plain": _uri(atlas.picture(PLAIN)),
        "cells": {
            text_of([head]): {
                "block": atlas.labels[head[0]],
                "gains": [atlas.gain(head, name) for name in names],
                "guided": [cell.guided[name] for name in names],
                "perturbed": [cell.perturbed[name] for name in names],
                "pictures": [_uri(atlas.picture(PERTURBED, head)), _uri(atlas.picture(GUIDED, head))],
            }
            for head, cell in sorted(atlas.cells.items())
        },
    }
    named = [(block, atlas.labels[block].partition("(")[2].rstrip(")")) for block in blocks]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        atlas=atlas,
        config=atlas.config,
        data=data,
        streams=[list(group) for _, group in groupby(named, key=lambda one: one[1].split(" ")[0])],
        blocks=blocks,
        columns=columns,
        settings=settings(atlas),
        signed=signed,
    )


def settings(atlas: Atlas) -> dict[str, str]:
    """What made the atlas, for people."""
    config, made = atlas.config, atlas.settings
    return {
        "model": config.model,
        "weights": str(config.weights),
        "prompt": config.prompt,
        "seed": str(config.seed),
        "guidance by heads": f"w {config.strength:g}, u {config.u:g}",
        "the model's own guidance": "on" if config.cfg else "off",
        "steps": str(made["steps"] or "the model's own"),
        "picture": f"{made['width']} × {made['height']} px",
        "blocks": config.where.blocks,
        "heads": f"{len(atlas.cells)}",
        "computed with": f"torch {made['torch']}, diffusers {made['diffusers']}, {made['dtype']} on {made['device']}",
    }


def digits(limit: float) -> int:
    """Decimals that show a hundredth of a scale that ends at `limit`."""
    return min(9, max(0, 2 - math.floor(math.log10(limit)))) if limit else 0


def heat_maps(atlas: Atlas) -> Image.Image:
    """One panel an objective: blocks downwards, heads across, colours centred at 0."""
    blocks, columns = _axes(atlas)
    wide = max(26, min(72, 640 // len(columns)))
    high = max(18, min(44, 640 // len(blocks)))
    size = (56 + wide * len(columns), 96 + high * len(blocks) + 56)
    down = math.ceil(len(atlas.plain) / max(1, (WIDEST - 2 * MARGIN) // (size[0] + 3 * GAP)))
    across = math.ceil(len(atlas.plain) / down)
    heading = f"Head atlas of {atlas.config.model}: “{atlas.config.prompt}”, seed {atlas.config.seed}"
    said = settings(atlas)
    below = f"{said['guidance by heads']}, the model's own guidance {'on' if atlas.config.cfg else 'off'}"
    width = 2 * MARGIN + max(across * (size[0] + 3 * GAP) - 3 * GAP, 420)
    sheet = Image.new("RGB", (width, 2 * MARGIN + 52 + down * size[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, MARGIN - 4), heading, INK, 22, width - 2 * MARGIN)
    _text(draw, (MARGIN, MARGIN + 28), below, PALE, 14, width - 2 * MARGIN)
    for i, name in enumerate(atlas.plain):
        at = (MARGIN + i % across * (size[0] + 3 * GAP), MARGIN + 52 + i // across * size[1])
        _panel(draw, at, atlas, name, (blocks, columns), (wide, high))
    return sheet


def _panel(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], atlas: Atlas, name: str,
    axes: tuple[list[int], list[int]], cell: tuple[int, int],
) -> None:  # fmt: skip
    (left, top), (blocks, columns), (wide, high) = (at[0] + 44, at[1] + 68), axes, cell
    limit, places = atlas.limit(name), digits(atlas.limit(name))
    _text(draw, (left, at[1] + 14), name, INK, 17, wide * len(columns))
    for column, head in enumerate(columns):
        draw.text((left + (column + 0.5) * wide, top - 6), f"H{head}", PALE, ImageFont.load_default(12), anchor="ms")
    for row, block in enumerate(blocks):
        middle = top + (row + 0.5) * high
        draw.text((left - 8, middle), f"L{block}", PALE, ImageFont.load_default(12), anchor="rm")
        for column, head in enumerate(columns):
            if (block, head) not in atlas.cells:
                continue
            gain = atlas.gain((block, head), name)
            share = gain / limit if limit else 0.0
            x, y = left + column * wide, top + row * high
            draw.rectangle((x, y, x + wide - 2, y + high - 2), shade(share))
            if wide >= 56 and high >= 24:
                ink = PAPER if share > 0.85 or share < -0.6 else INK
                font = ImageFont.load_default(13)
                draw.text((x + wide / 2 - 1, middle), _plain(signed(gain, places)), ink, font, anchor="mm")
    _legend(draw, (left, top + high * len(blocks) + 10), min(wide * len(columns) - 2, 320), limit, places)


def _legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, limit: float, places: int) -> None:
    for x in range(width):
        draw.line((at[0] + x, at[1], at[0] + x, at[1] + 10), shade(2 * x / (width - 1) - 1))
    for text, x, anchor in (
        (signed(-limit, places), 0, "la"),
        ("0", width // 2, "ma"),
        (signed(limit, places), width, "ra"),
    ):
        draw.text((at[0] + x, at[1] + 15), text, PALE, ImageFont.load_default(12), anchor=anchor)


def shade(share: float) -> tuple[int, int, int]:
    """The colour of a gain as a share of the scale, -1 to 1."""
    end = MORE if share > 0 else LESS
    red, green, blue = (round(a + (b - a) * min(1.0, abs(share))) for a, b in zip(NONE, end, strict=True))
    return red, green, blue


def signed(value: float, places: int) -> str:
    """A gain with its sign."""
    text = f"{abs(value):.{places}f}"
    return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"


def _axes(atlas: Atlas) -> tuple[list[int], list[int]]:
    """Blocks and heads, in order."""
    return sorted({block for block, _ in atlas.cells}), sorted({head for _, head in atlas.cells})


def _plain(text: str) -> str:
    """With a hyphen for the minus, which Pillow's own font lacks."""
    return text.replace("−", "-")


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: str, size: int, width: int) -> None:
    """One line, cut where it would leave its room."""
    font = ImageFont.load_default(size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, ink, font)


def _uri(path: Path) -> str:
    """A thumbnail as a data URI, PNG or JPEG, whichever is smaller."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        raise ControlError(f"{path} is no picture any more; delete it, and the same command draws it again") from None
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    bodies = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 92})):
        buffer = BytesIO()
        picture.save(buffer, kind, **options)
        bodies.append((len(buffer.getvalue()), kind, b64encode(buffer.getvalue()).decode()))
    _, kind, body = min(bodies)
    return f"data:image/{kind};base64,{body}"
