"""Contact sheets: rows of pictures with their names, as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, PALE, PAPER, FRAME = "#1d1d1f", "#6e6e73", "#fbfbfa", "#b3261e"
GAP, MARGIN, TITLE, LINE = 12, 24, 34, 17
MIN_CELL, MAX_CELL = 192, 320


@dataclass(frozen=True)
class SheetRow:
    """One row: its title, pictures, and the caption under each; `marked` pictures (references) get a frame."""

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str]
    marked: frozenset[int] = frozenset()


def contact_sheet(rows: Sequence[SheetRow], heading: str = "") -> Image.Image:
    """All rows under one heading. Small pictures are enlarged to 192 px, large ones reduced to 320 px; of wide ones the
    shorter side."""
    widest = max(max(p.size) for row in rows for p in row.pictures)
    narrow = max(min(p.size) for row in rows for p in row.pictures)
    wide = widest / narrow if widest >= 2 * narrow else 1.0
    cell = min(round(MAX_CELL * wide), widest * max(1, round(MIN_CELL * wide / widest)))
    columns = max(len(row.pictures) for row in rows)
    title_font, font = ImageFont.load_default(18), ImageFont.load_default(13)
    heading_font = ImageFont.load_default(24)
    letters = max(12, int(cell / 6.6))
    wrapped = [[textwrap.wrap(c, letters)[:3] for c in row.captions] for row in rows]
    heights = [TITLE + cell + 8 + LINE * max((len(c) for c in caps), default=0) + GAP for caps in wrapped]
    top = MARGIN + (44 if heading else 0)
    width = max(2 * MARGIN + columns * cell + (columns - 1) * GAP, 2 * MARGIN + int(heading_font.getlength(heading)))
    sheet = Image.new("RGB", (width, top + sum(heights) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.text((MARGIN, MARGIN - 4), heading, INK, heading_font)
    y = top
    for row, captions, height in zip(rows, wrapped, heights, strict=True):
        draw.text((MARGIN, y + 4), row.title, INK, title_font)
        for i, (picture, lines) in enumerate(zip(row.pictures, captions, strict=True)):
            x = MARGIN + i * (cell + GAP)
            shown = _scaled(picture, cell)
            at = (x + (cell - shown.width) // 2, y + TITLE + (cell - shown.height) // 2)
            sheet.paste(shown, at)
            if i in row.marked:
                box = (at[0] - 3, at[1] - 3, at[0] + shown.width + 2, at[1] + shown.height + 2)
                draw.rectangle(box, outline=FRAME, width=3)
            for n, line in enumerate(lines):
                draw.text((x, y + TITLE + cell + 8 + n * LINE), line, PALE, font)
        y += height
    return sheet


def _scaled(picture: Image.Image, cell: int) -> Image.Image:
    factor = cell / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
