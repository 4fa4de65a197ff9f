"""Reads training records from a folder of pictures whose names say which files belong together.

The naming rules are in docs/reference/data-formats.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs

from qframe.data.files import FileSource, Problems, Root, read_text, text_problem
from qframe.data.options import FolderOptions
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe.pictures.picture import Picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""The suffixes of the files that are read as pictures, in any case of letters."""
_UNREADABLE = (".avif", ".heic", ".heif", ".jxl", ".svg", ".psd", ".cr2", ".nef", ".dng")
_CAPTION = ".txt"
_REFERENCE = re.compile(r"(?P<name>.+)_ref(?P<number>[1-9]\d*)?")
_LOSS_MAP = re.compile(r"(?P<name>.+)_(?:weight|mask)")
_CONTROL_FOLDER = re.compile(r"control(?P<number>[1-9]\d*)?")
_LOSS_MAP_FOLDERS = ("weight", "mask")
_NO_CAPTIONS = {"readme", "license", "licence", "notice"}


@attrs.define(eq=False)
class _Files:
    """The files that belong to one target, as paths relative to the data set's folder.

    Attributes:
        targets: The target; more than one if several files have the same name apart from their suffix.
        captions: Text files with the prompt.
        loss_maps: Pictures that say where the loss counts.
        references: Reference pictures, each with the number in its name, or 0 if its name has none.
    """

    targets: list[str] = attrs.field(factory=list)
    captions: list[str] = attrs.field(factory=list)
    loss_maps: list[str] = attrs.field(factory=list)
    references: list[tuple[int, str]] = attrs.field(factory=list)


class FolderSource(FileSource):
    """A data source that makes one record of each target picture in a folder and its subfolders.

    The other files of a target NAME.png are found by their names: the caption is NAME.txt; a reference is NAME_ref.png
    or control/NAME.png (several have numbers, as in NAME_ref1.png); the loss map is NAME_mask.png or NAME_weight.png,
    or lies in the folder mask or weight. A target without caption gets `data.options.prompt`.
    """

    name = "folder"
    rules = "The naming rules are in docs/reference/data-formats.md."
    settings: FolderOptions

    @staticmethod
    def default_options() -> FolderOptions:
        """Return the options that are used if the user gives none."""
        return FolderOptions()

    def read(self, problems: Problems) -> list[Record]:
        """Return one record for each target, sorted by name, and add a problem for each file that cannot be used.

        Raises:
            DataError: The path is not a folder, or the folder holds no pictures.
        """
        if not self.path.is_dir():
            raise DataError(f"data.path: {self.path} is not a folder", "Give a folder, or choose data.use.")
        found = self._gather(problems)
        root = Root(self.path, allow_outside=self.settings.allow_outside)
        records = []
        for name in sorted(found):
            with problems.about(name):
                record = self._record(name, found[name], root, problems)
            if record is not None:
                records.append(record)
        if not records and not problems.found:
            raise DataError(
                f"{self.path}: no pictures found", f"Targets are files with the suffix {', '.join(PICTURES)}."
            )
        return records

    def _gather(self, problems: Problems) -> Mapping[str, _Files]:
        """Find all files, and sort them by the target that they belong to."""
        found: dict[str, _Files] = {}
        seen: set[str] = set()

        def failed(error: OSError) -> None:
            problems.add(str(error.filename), error.strerror or str(error))

        for folder, folders, files in os.walk(self.path, onerror=failed, followlinks=True):
            folders[:] = [
                name
                for name in sorted(folders)
                if not name.startswith(".") and self._may_enter(os.path.join(folder, name), seen, problems)
            ]
            for file in sorted(files):
                if not file.startswith("."):
                    relative = Path(folder, file).relative_to(self.path).as_posix()
                    _sort(PurePosixPath(relative), found, problems)
        return found

    def _may_enter(self, folder: str, seen: set[str], problems: Problems) -> bool:
        """Whether to read a folder: one that is a link only if the user allows it, and no folder twice."""
        if os.path.islink(folder) and not self.settings.allow_outside:
            problems.add(folder, "a link to a folder; move it here, or set data.options.allow_outside")
            return False
        real = os.path.realpath(folder)
        new = real not in seen
        seen.add(real)
        return new

    def _record(self, name: str, files: _Files, root: Root, problems: Problems) -> Record | None:
        """Make the record of a target. None if there is no picture of the target, or more than one."""
        if not files.targets:
            for orphan in [*files.captions, *files.loss_maps, *(path for _, path in files.references)]:
                problems.add(orphan, f"belongs to a target {name}, of which there is no picture")
            return None
        if len(files.targets) > 1:
            problems.add(files.targets[1], f"has the same name as {files.targets[0]}; rename one of them")
            return None
        target = files.targets[0]
        prompt = self._prompt(target, files.captions, root, problems)
        references = _ordered(name, files.references, problems)
        if len(files.loss_maps) > 1:
            problems.add(files.loss_maps[1], f"a second loss map, after {files.loss_maps[0]}")
        pictures = {path: Picture(path, self.path / path) for path in [target, *references, *files.loss_maps]}
        for path, picture in pictures.items():
            if (problem := root.problem(self.path / path)) is not None:
                problems.add(path, problem, picture)
        return Record(
            id=name,
            origin=target,
            prompt=prompt,
            target=pictures[target],
            references=tuple(pictures[path] for path in references),
            loss_map=pictures[files.loss_maps[0]] if files.loss_maps else None,
        )

    def _prompt(self, target: str, captions: Sequence[str], root: Root, problems: Problems) -> str:
        """The prompt of a target: its caption, else `data.options.prompt`. A problem is added if there is neither."""
        text = ""
        if captions:
            problem = root.problem(self.path / captions[0])
            try:
                text = read_text(self.path / captions[0]).strip() if problem is None else ""
            except ValueError as error:
                problem = str(error)
            if problem is not None:
                problems.add(captions[0], problem)
                return ""
        text = text or self.settings.prompt or ""
        if not text:
            where = captions[0] if captions else target
            what = "the caption is empty" if captions else f"there is no caption {PurePosixPath(target).stem}{_CAPTION}"
            problems.add(where, f"{what}; write one, or set data.options.prompt for all that have none")
        elif (problem := text_problem(text)) is not None:
            problems.add(captions[0] if captions else "data.options.prompt", problem)
        return text


def _sort(path: PurePosixPath, found: dict[str, _Files], problems: Problems) -> None:
    """Decide by the name of a file which target it belongs to and as what, and add it to `found`."""

    def of(name: PurePosixPath) -> _Files:
        return found.setdefault(name.as_posix(), _Files())

    suffix, text = path.suffix.lower(), path.as_posix()
    bare = path.with_suffix("")
    if suffix in _UNREADABLE:
        problems.add(text, f"pictures of this format are not read; convert it to one of {', '.join(PICTURES)}")
    elif suffix == _CAPTION:
        if bare.name.lower() not in _NO_CAPTIONS:
            of(bare).captions.append(text)
    elif suffix in PICTURES:
        top = path.parts[0] if len(path.parts) > 1 else ""
        if control := _CONTROL_FOLDER.fullmatch(top):
            of(bare.relative_to(top)).references.append((int(control["number"] or 0), text))
        elif top in _LOSS_MAP_FOLDERS:
            of(bare.relative_to(top)).loss_maps.append(text)
        elif reference := _REFERENCE.fullmatch(bare.name):
            of(bare.with_name(reference["name"])).references.append((int(reference["number"] or 0), text))
        elif loss_map := _LOSS_MAP.fullmatch(bare.name):
            of(bare.with_name(loss_map["name"])).loss_maps.append(text)
        else:
            of(bare).targets.append(text)


def _ordered(name: str, references: Sequence[tuple[int, str]], problems: Problems) -> list[str]:
    """Sort the references of a target by the numbers in their names.

    A problem is added unless there is a single reference without a number, or their numbers are 1, 2, 3 without a gap.
    """
    ordered = sorted(references)
    numbers = [number for number, _ in ordered]
    if numbers not in ([], [0], list(range(1, len(numbers) + 1))):
        shown = ", ".join(path for _, path in ordered)
        problems.add(
            name,
            f"its references cannot be put in order: {shown}; "
            "one alone has no number (_ref, control), several have 1, 2, ...",
        )
    return [path for _, path in ordered]
