"""Contact sheets: labelled rows of pictures with a tick or a cross, for a person to look at."""

import textwrap
from collections.abc import Sequence

import attrs
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _TEXT_WIDTH, _HEADER = 8, 220, 22
_INK, _PAPER, _GRID = (30, 30, 30), (252, 252, 250), (205, 205, 200)
_GOOD, _BAD = (30, 140, 60), (200, 45, 45)


@attrs.frozen(eq=False)
class Row:
    """One line of a sheet. pictures: one per column, None leaves a gap. note: small print, e.g. what failed.

    success: True draws a tick, False a cross, None nothing.
    """

    label: str
    pictures: Sequence[Image.Image | None]
    success: bool | None = None
    note: str = ""


def contact_sheet(rows: Sequence[Row], columns: Sequence[str], *, title: str = "", scale: int = 2) -> Image.Image:
    """A grid: per row its label, its pictures ``scale`` times enlarged, and its tick or cross.

    ValueError if a row has not one picture (or None) per column.
    """
    for index, row in enumerate(rows):
        if len(row.pictures) != len(columns):
            raise ValueError(f"row {index} has {len(row.pictures)} pictures for {len(columns)} columns")
    font = ImageFont.load_default()
    widths = [_column_width(rows, i, scale) for i in range(len(columns))]
    heights = [max([p.height * scale for p in row.pictures if p is not None] + [48]) for row in rows]
    top = _HEADER * (2 if title else 1)
    size = (
        _TEXT_WIDTH + sum(w + _MARGIN for w in widths) + 40,
        top + sum(h + _MARGIN for h in heights) + _MARGIN,
    )  # fmt: skip
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, 5), title, fill=_INK, font=font)
    x = _TEXT_WIDTH
    for name, width in zip(columns, widths, strict=True):
        draw.text((x, top - 16), name, fill=_INK, font=font)
        x += width + _MARGIN
    y = top
    for row, height in zip(rows, heights, strict=True):
        _draw_row(sheet, draw, font, row, widths, scale, y)
        y += height + _MARGIN
        draw.line([(0, y - _MARGIN // 2), (size[0], y - _MARGIN // 2)], fill=_GRID)
    return sheet


def _column_width(rows: Sequence[Row], index: int, scale: int) -> int:
    pictures = [row.pictures[index] for row in rows]
    return max([picture.width * scale for picture in pictures if picture is not None] + [64])


def _draw_row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    row: Row,
    widths: Sequence[int],
    scale: int,
    y: int,
) -> None:
    text = textwrap.fill(row.label, 34) + (f"\n\n{textwrap.fill(row.note, 34)}" if row.note else "")
    draw.multiline_text((_MARGIN, y + 2), text, fill=_INK, font=font)
    x = _TEXT_WIDTH
    for picture, width in zip(row.pictures, widths, strict=True):
        if picture is not None:
            size = (picture.width * scale, picture.height * scale)
            enlarged = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x, y))
        x += width + _MARGIN
    if row.success is True:
        draw.line([(x + 4, y + 16), (x + 11, y + 24), (x + 24, y + 6)], fill=_GOOD, width=4)
    elif row.success is False:
        draw.line([(x + 5, y + 6), (x + 23, y + 24)], fill=_BAD, width=4)
        draw.line([(x + 23, y + 6), (x + 5, y + 24)], fill=_BAD, width=4)
