"""The names that data sets of other trainers give to the parts of a record: columns, folders, and endings of files.

docs/reference/data-formats.md has the same tables; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import attrs

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "target": (
        "target",
        "image",
        "image_path",
        "image_file",
        "image_filename",
        "img",
        "img_path",
        "file_name",
        "filename",
        "file",
        "file_path",
        "filepath",
        "path",
        "target_image",
        "target_path",
        "target_file",
        "target_img",
        "edited_image",
        "edited",
        "edited_img",
        "output_image",
        "output",
        "output_path",
        "after",
        "jpg",
        "png",
    ),
    "prompt": (
        "prompt",
        "caption",
        "captions",
        "text",
        "instruction",
        "edit_prompt",
        "edit_instruction",
        "instruct_prompt",
        "description",
        "caption_text",
        "image_caption",
        "prompts",
        "txt",
    ),
    "references": (
        "references",
        "reference",
        "control",
        "controls",
        "control_path",
        "control_image",
        "control_image_path",
        "controlnet_image",
        "conditioning",
        "conditioning_image",
        "conditioning_image_path",
        "conditioning_path",
        "condition_image",
        "cond_image",
        "context_image",
        "edit_image",
        "edit_images",
        "kontext_images",
        "input_image",
        "input_path",
        "input",
        "source",
        "source_image",
        "source_path",
        "source_img",
        "src_img",
        "src_image",
        "original_image",
        "original",
        "reference_image",
        "reference_path",
        "ref",
        "ref_image",
        "ref_path",
        "before",
    ),
    "weight": (
        "weight",
        "mask",
        "mask_path",
        "mask_image",
        "mask_file",
        "loss_mask",
        "loss_mask_path",
        "inpaint_mask",
        "weight_path",
    ),
    "id": ("id",),
    "group": ("group",),
}
"""For each key of a record, the columns (in a table) or keys (in JSON lines) that it is read from. References may be
numbered: a number follows the name, with or without an underscore."""

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "target": (
        "target",
        "targets",
        "target_images",
        "image",
        "images",
        "img",
        "imgs",
        "output",
        "outputs",
        "after",
        "edited",
        "result",
        "results",
        "end",
        "instance_images",
        "train",
        "ground_truth",
    ),
    "references": (
        "control",
        "controls",
        "control_images",
        "control_image",
        "control_img",
        "conditioning",
        "conditioning_data",
        "conditioning_images",
        "condition",
        "conditions",
        "cond",
        "reference",
        "references",
        "reference_images",
        "ref",
        "refs",
        "source",
        "sources",
        "source_images",
        "src",
        "input",
        "inputs",
        "input_images",
        "before",
        "original",
        "originals",
        "start",
        "edit_images",
    ),
    "weight": ("weight", "weights", "mask", "masks", "loss_mask", "loss_masks", "mask_images", "masked"),
    "prompt": ("caption", "captions", "text", "texts", "txt", "prompt", "prompts"),
}
"""For each part of a record, the names of folders that hold it. Folders of references may be numbered."""

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "references": (
        "_control",
        "_condition",
        "_source",
        "_src",
        "_input",
        "_before",
        "_original",
        "_start",
        "-condlabel",
    ),
    "target": ("_target", "_output", "_after", "_edited", "_result", "_end"),
    "weight": ("-masklabel",),
}
"""For each part of a record, what the name of its file (without suffix) may end with, besides _ref, _mask, _weight."""

CAPTION_SUFFIXES = (".txt", ".caption")
"""The suffixes of captions; of several files for one target, the first of these suffixes counts."""

TABLES = ("metadata", "captions", "dataset", "data", "train", "prompts")
"""What the names of tables begin with that lie in a folder of pictures and hold the captions."""
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""The suffixes of such tables."""


@attrs.frozen
class Meaning:
    """The part of a record that a name of another trainer stands for.

    Attributes:
        part: A key of `COLUMNS`.
        number: The number at the end of the name of a reference; None if it has none.
    """

    part: str
    number: int | None = None


def column_meaning(name: str) -> Meaning | None:
    """Return what a column is for; None if no trainer that is known has such a column.

    Case, and whether words are joined by "_", "-" or a space, make no difference.
    """
    plain = _plain(name)
    for part, names in COLUMNS.items():
        if plain in names:
            return Meaning(part)
    numbered = re.fullmatch(r"(?P<name>.*?)_?(?P<number>\d{1,4})", plain)
    if numbered and numbered["name"] in COLUMNS["references"]:
        return Meaning("references", int(numbered["number"]))
    return None


def folder_meaning(name: str) -> Meaning | None:
    """Return what the files in a folder of this name are; None if the name says nothing."""
    plain = _plain(name)
    for part, names in FOLDERS.items():
        if plain in names:
            return Meaning(part)
    numbered = re.fullmatch(r"(?P<name>.*?)_?(?P<number>\d{1,4})", plain)
    if numbered and numbered["name"] in FOLDERS["references"]:
        return Meaning("references", int(numbered["number"]))
    return None


def without_ending(stem: str, part: str) -> str | None:
    """Return the name of a file without the ending that makes it this part of a record; None if it has no such."""
    lower = stem.lower()
    found = next((e for e in ENDINGS[part] if lower.endswith(e) and len(stem) > len(e)), None)
    return None if found is None else stem[: -len(found)]


def is_table(path: PurePath) -> bool:
    """Whether a file in a folder of pictures seems, by its name, to be the table that holds the captions."""
    return path.suffix.lower() in TABLE_SUFFIXES and path.stem.lower().startswith(TABLES)


def known_columns() -> Iterable[str]:
    """Return every name of a column, without numbers."""
    return (name for names in COLUMNS.values() for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())
