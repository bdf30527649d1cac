"""An atlas as heat maps in one picture, and how gains are written."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from ...pipelines.sheets import GAP, INK, MARGIN, PALE, PAPER
from .atlas import Atlas

LESS, NONE, MORE = (84, 52, 160), (238, 236, 232), (180, 83, 9)
"""Colours of a loss, of nothing and of a gain; the page has them too, with others for dark paper."""
WIDEST, NARROWEST, AROUND = 1500, 220, 44
HEADING, TITLE, KEY = 52, 68, 84
"""Heights: over all panels, over a panel's cells, and under them."""


def heat_maps(atlas: Atlas) -> Image.Image:
    """One panel an objective: blocks downwards, heads across, colours centred at 0."""
    blocks, heads = axes(atlas)
    cell = max(26, min(72, 640 // len(heads))), max(18, min(44, 640 // len(blocks)))
    wide, high = AROUND + max(NARROWEST, cell[0] * len(heads)), TITLE + cell[1] * len(blocks) + KEY
    down = math.ceil(len(atlas.plain) / max(1, (WIDEST - 2 * MARGIN) // (wide + 3 * GAP)))
    across = math.ceil(len(atlas.plain) / down)
    width = 2 * MARGIN + max(across * (wide + 3 * GAP) - 3 * GAP, 480)
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEADING + down * high - GAP), PAPER)
    draw, config, room = ImageDraw.Draw(sheet), atlas.config, width - 2 * MARGIN
    own = "on" if config.cfg else "off"
    _line(draw, (MARGIN, MARGIN - 4), f"Head atlas: “{config.prompt}”", INK, 24, room)
    below = f"{config.model}, seed {config.seed}, w {config.strength:g}, u {config.u:g}, the model's own guidance {own}"
    _line(draw, (MARGIN, MARGIN + 28), below, PALE, 14, room)
    for i, name in enumerate(atlas.plain):
        corner = MARGIN + i % across * (wide + 3 * GAP), MARGIN + HEADING + i // across * high
        _panel(draw, corner, atlas, name, cell)
    return sheet


def _panel(draw: ImageDraw.ImageDraw, corner: tuple[int, int], atlas: Atlas, name: str, cell: tuple[int, int]) -> None:
    (left, top), (wide, high), (blocks, heads) = (corner[0] + AROUND, corner[1] + TITLE), cell, axes(atlas)
    limit, small = atlas.limit(name), ImageFont.load_default(12)
    room = max(NARROWEST, wide * len(heads))
    _line(draw, (left, corner[1] + 14), name, INK, 17, room)
    for column, head in enumerate(heads):
        draw.text((left + (column + 0.5) * wide, top - 6), f"H{head}", PALE, small, anchor="ms")
    for row, block in enumerate(blocks):
        draw.text((left - 8, top + (row + 0.5) * high), f"L{block}", PALE, small, anchor="rm")
    for block, head in atlas.cells:
        x, y = left + heads.index(head) * wide, top + blocks.index(block) * high
        gain = atlas.gain((block, head), name)
        share = max(-1.0, min(1.0, gain / limit)) if limit else 0.0
        draw.rectangle((x, y, x + wide - 2, y + high - 2), shade(share))
        if wide >= 56 and high >= 24:
            ink = PAPER if share > 0.8 or share < -0.6 else INK
            text = _hyphened(signed(gain, digits(limit)))
            draw.text((x + wide / 2 - 1, y + high / 2 - 1), text, ink, ImageFont.load_default(13), anchor="mm")
    y, width = top + high * len(blocks) + 10, min(room - 2, 320)
    for i in range(width):
        draw.line((left + i, y, left + i, y + 10), shade(2 * i / (width - 1) - 1))
    low, most = ends(atlas, name)
    for text, i, anchor in ((low, 0, "la"), ("0", width // 2, "ma"), (most, width, "ra")):
        draw.text((left + i, y + 15), _hyphened(text), PALE, small, anchor=anchor)


def axes(atlas: Atlas) -> tuple[list[int], list[int]]:
    """Blocks and heads, in order."""
    return sorted({block for block, _ in atlas.cells}), sorted({head for _, head in atlas.cells})


def shade(share: float) -> tuple[int, int, int]:
    """The colour of a gain as a share of the scale, -1 to 1."""
    end = MORE if share > 0 else LESS
    red, green, blue = (round(a + (b - a) * abs(share)) for a, b in zip(NONE, end, strict=True))
    return red, green, blue


def digits(limit: float) -> int:
    """Decimals that show a hundredth of a scale that ends at `limit`."""
    return min(9, max(0, 2 - math.floor(math.log10(limit)))) if limit else 0


def signed(value: float, places: int) -> str:
    """A gain with its sign."""
    text = f"{abs(value):.{places}f}"
    return f"{'+' if value > 0 else '−'}{text}" if float(text) else text


def ends(atlas: Atlas, objective: str) -> tuple[str, str]:
    """What stands at the ends of a colour scale; a few heads may lie beyond."""
    limit = atlas.limit(objective)
    low, high = (signed(value, digits(limit)) for value in (-limit, limit))
    return (low, high) if limit == atlas.largest(objective) else (f"{low} or less", f"{high} or more")


def _hyphened(text: str) -> str:
    """With a hyphen for the minus, which Pillow's own font lacks."""
    return text.replace("−", "-")


def _line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: str, size: int, room: int) -> None:
    """One line, cut where it would leave its room."""
    font = ImageFont.load_default(size)
    if font.getlength(text) > room:
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text += "…"
    draw.text(at, text, ink, font)
