"""Draws contact sheets: one picture with labelled rows and columns of small pictures, for a person to look at.

Of the packages that are not Python's own, only Pillow is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

_SMALLEST, _LARGEST = 128, 384  # of a picture's longer side, in pixels of the sheet
_LABEL_WIDTH, _MARGIN, _LINE, _FONT_SIZE = 240, 10, 18, 14
_MARK_WIDTH = 36
_INK, _FAINT, _PAPER, _RULE = (30, 30, 30), (110, 110, 110), (252, 252, 250), (205, 205, 200)
_GOOD, _BAD = (30, 140, 60), (200, 45, 45)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Row(NamedTuple):
    """A row of a contact sheet.

    Attributes:
        label: The text at the left end of the row.
        pictures: One picture for each column; None leaves the place empty.
        success: True draws a tick at the right end of the row, False a cross, None nothing.
        note: A text in a fainter colour under the label.
    """

    label: str
    pictures: Sequence[Image.Image | None]
    success: bool | None = None
    note: str = ""


PlainRow = tuple[str, Sequence[Image.Image | None]]
"""A row given as (label, pictures), without tick or cross and without a note."""


def contact_sheet(rows: Sequence[Row | PlainRow], columns: Sequence[str], *, title: str = "") -> Image.Image:
    """Draw a contact sheet: for each row its label, its pictures, and a tick or cross.

    Pictures whose longer side has under 128 pixels are enlarged by an integer factor, without smoothing, to at least
    128; those whose longer side has over 384 pixels are scaled down to 384.

    Args:
        rows: The rows, from top to bottom.
        columns: The heading of each column.
        title: A line above the headings.

    Raises:
        ValueError: A row does not have one picture (or None) for each column.
    """
    lines = [Row(*row) for row in rows]
    for index, line in enumerate(lines):
        if len(line.pictures) != len(columns):
            raise ValueError(f"row {index} has {len(line.pictures)} pictures for {len(columns)} columns")
    shown = [[None if picture is None else _visible(picture) for picture in line.pictures] for line in lines]
    font = ImageFont.load_default(_FONT_SIZE)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    texts = [(_wrap(measure, font, line.label), _wrap(measure, font, line.note)) for line in lines]
    widths = [
        max([_SMALLEST // 2, int(measure.textlength(name, font)) + 1, *(row[i].width for row in shown if row[i])])  # type: ignore[union-attr]
        for i, name in enumerate(columns)
    ]
    heights = [
        max([(len(label) + len(note)) * _LINE, *(picture.height for picture in row if picture)])
        for row, (label, note) in zip(shown, texts, strict=True)
    ]
    top = _MARGIN + _LINE * (2 if title else 1)
    marks = _MARK_WIDTH if any(line.success is not None for line in lines) else 0
    width = _MARGIN + _LABEL_WIDTH + sum(width + _MARGIN for width in widths) + marks
    sheet = Image.new("RGB", (width, top + sum(height + _MARGIN for height in heights) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN // 2), title, fill=_INK, font=font)
    lefts = [_MARGIN + _LABEL_WIDTH + sum(w + _MARGIN for w in widths[:i]) for i in range(len(widths) + 1)]
    for left, name in zip(lefts, columns, strict=False):
        draw.text((left, top - _LINE), name, fill=_FAINT, font=font)
    y = top + _MARGIN // 2
    for line, row, (label, note), height in zip(lines, shown, texts, heights, strict=True):
        for place, text in enumerate([*label, *note]):
            draw.text((_MARGIN, y + place * _LINE), text, fill=_INK if place < len(label) else _FAINT, font=font)
        for left, picture in zip(lefts, row, strict=False):
            if picture is not None:
                sheet.paste(picture, (left, y))
        _mark(draw, line.success, lefts[-1], y)
        y += height + _MARGIN
        draw.line([(0, y - _MARGIN // 2), (width, y - _MARGIN // 2)], fill=_RULE)
    return sheet


def _visible(picture: Image.Image) -> Image.Image:
    longer = max(picture.size)
    rgb = picture.convert("RGB")
    if longer < _SMALLEST:
        factor = -(-_SMALLEST // longer)
        return rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.NEAREST)
    if longer > _LARGEST:
        rgb.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return rgb


def _wrap(draw: ImageDraw.ImageDraw, font: _Font, text: str) -> list[str]:
    """Break a text into lines that fit the width of labels; a word that is too long for a line is broken too."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if draw.textlength(joined, font) <= _LABEL_WIDTH - _MARGIN:
            line = joined
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if draw.textlength(line + letter, font) > _LABEL_WIDTH - _MARGIN:
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line] if line else lines


def _mark(draw: ImageDraw.ImageDraw, success: bool | None, x: int, y: int) -> None:
    if success is True:
        draw.line([(x + 4, y + 16), (x + 11, y + 24), (x + 24, y + 6)], fill=_GOOD, width=4)
    elif success is False:
        draw.line([(x + 5, y + 6), (x + 23, y + 24)], fill=_BAD, width=4)
        draw.line([(x + 23, y + 6), (x + 5, y + 24)], fill=_BAD, width=4)
