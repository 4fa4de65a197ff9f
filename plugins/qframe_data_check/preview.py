"""Draws a contact sheet of records as the model will see them, that is, with pictures resized as for training."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from qframe.interfaces import Recipe, Record
from qframe.pictures.contact_sheet import Row, contact_sheet
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import fit, open_fitted, open_grey, picture_size
from qframe_data_check.report import Report

_LONGEST_PROMPT = 160


def preview_sheet(report: Report, recipe: Recipe, *, count: int = 24) -> Image.Image | None:
    """Draw records that can be used, each with its references, its target, its mask and its prompt.

    The pictures are resized as training resizes them. On the sheet, pictures with a side above 384 pixels are reduced
    once more.

    Args:
        report: The result of checking the data set, which says which records can be used.
        recipe: Says which pictures of a record are encoded, and to which size each of them is resized.
        count: The most records that are drawn. They are spread evenly over the data set.

    Returns:
        The sheet, or None if no record can be used.
    """
    chosen = [report.usable[place] for place in _spread(len(report.usable), count)]
    if not chosen:
        return None
    records = [report.record(place) for place in chosen]
    references = max(len(record.references) for record in records)
    masks = any(record.loss_map is not None for record in records)
    names = ["reference"] if references == 1 else [f"reference {number + 1}" for number in range(references)]
    columns = [*names, "target", *(["mask"] if masks else [])]
    rows = [_row(record, recipe, references, masks) for record in records]
    return contact_sheet(rows, columns, title=f"{len(rows)} of {report.total} records, as the model will see them")


def _row(record: Record, recipe: Recipe, references: int, masks: bool) -> Row:
    inputs = recipe.inputs(record)
    pictures: list[Image.Image | None] = [open_fitted(pixel) for pixel in inputs.references]
    pictures += [None] * (references - len(pictures))
    target = open_fitted(inputs.target)
    pictures.append(target)
    if masks:
        pictures.append(None if inputs.loss_map is None else _mask(inputs.loss_map))
    height, width = picture_size(record.target)
    note = f"{record.id}: {width} x {height} to {target.width} x {target.height}"
    prompt = record.prompt if len(record.prompt) <= _LONGEST_PROMPT else record.prompt[: _LONGEST_PROMPT - 3] + "..."
    return Row(prompt, pictures, note=note)


def _mask(pixel: PixelInput) -> Image.Image:
    return fit(open_grey(pixel.picture), pixel.geometry)


def _spread(total: int, count: int) -> Sequence[int]:
    """Choose at most `count` numbers of range(total), evenly spread; the first and the last are among them."""
    if total <= count:
        return range(total)
    return [round(place * (total - 1) / (count - 1)) for place in range(count)] if count > 1 else [0]
