"""Reads training records from a folder of pictures whose names say which files belong together.

The naming rules are in docs/reference/data-formats.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import attrs

from qframe.data.files import FileSource, Root, read_text
from qframe.data.gathering import DataFile, TargetFiles, gather, in_order
from qframe.data.layout import LARGEST_REPEATS, PICTURES, Layout, clean, find_layout
from qframe.data.names import is_table
from qframe.data.options import FolderOptions
from qframe.data.problems import Problems
from qframe.errors import DataError
from qframe.files.text import text_problem
from qframe.interfaces import Record
from qframe.pictures.picture import Picture


class FolderSource(FileSource):
    """A data source that makes one record of each target picture in a folder and its subfolders.

    The other files of a target NAME.png are found by their names: the caption is NAME.txt; a reference is NAME_ref.png
    or control/NAME.png (several have numbers, as in NAME_ref1.png); the loss map is NAME_mask.png or NAME_weight.png,
    or lies in the folder mask or weight. Names and folders of other trainers are recognised (`qframe.data.layout`), or
    named by the user. A target without caption gets `data.options.prompt`.
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
            DataError: The path is not a folder, the folder holds no pictures, or a folder that the user names does not
                exist.
        """
        layout, (files, walked) = self._layout, self._walked
        problems.found += walked.found
        found = gather(files, layout, problems)
        self._refuse_tables(found)
        for folder, times in self._repeats().items():
            if times > LARGEST_REPEATS:
                problems.add(
                    f"{folder}/",
                    f"the name asks for more than {LARGEST_REPEATS} repeats; rename the folder if it is a year, or set "
                    "data.options.folder_repeats = false",
                )
        records = []
        for name in sorted(found):
            with problems.about(name):
                record = self._record(name, found[name], problems)
            if record is not None:
                records.append(record)
        if not records and not problems.found:
            raise DataError(
                f"{self.path}: no pictures found", f"Targets are files with the suffix {', '.join(PICTURES)}."
            )
        return records

    def times(self, record: Record) -> int:
        """Return how many times an epoch visits a record: `data.options.repeats` times what its folder's name says."""
        said = self._layout.repeats(PurePosixPath(record.origin)) if self.settings.folder_repeats else None
        return self.settings.repeats * (1 if said is None else said[1])

    def notes(self) -> Sequence[str]:
        """Say which folders were recognised by a usual name of other trainers, and which repeat their pictures."""
        names = {"references": "references", "weight": "loss maps", "prompt": "captions"}
        notes = [
            f"{folder}/ is read as the folder of {names[self._layout.roles[folder].part]}, as its name says"
            for folder in self._layout.recognised
        ]
        notes += [
            f"{folder}/: every picture counts {times} times, as the name says "
            "(data.options.folder_repeats = false counts it once)"
            for folder, times in self._repeats().items()
        ]
        return notes

    def _repeats(self) -> dict[str, int]:
        """The folders whose names ask for repeats."""
        if not self.settings.folder_repeats:
            return {}
        paths = [path for path, _ in self._walked[0] if path.suffix.lower() in PICTURES]
        said = {self._layout.repeats(path) for path in paths if self._layout.role(path) is None}
        return {folder: times for folder, times, _ in sorted(one for one in said if one is not None)}

    @cached_property
    def _layout(self) -> Layout:
        files, _ = self._walked
        return find_layout([path for path, _ in files], self._named)

    @cached_property
    def _named(self) -> FolderOptions:
        """The options, in which named folders inside of the data set's folder are relative to it."""
        settings, real = self.settings, os.path.realpath(self.path)

        def relative(name: str | None) -> str | None:
            if name is None:
                return None
            folder = os.path.normpath(self.path / Path(name).expanduser())
            inside = os.path.relpath(os.path.realpath(folder), real)
            return clean(name if inside.startswith("..") or os.path.islink(folder) else inside)

        references = None if settings.references is None else tuple(map(str, map(relative, settings.references)))
        return attrs.evolve(
            settings,
            references=references,
            loss_maps=relative(settings.loss_maps),
            captions=relative(settings.captions),
        )

    @cached_property
    def _walked(self) -> tuple[list[tuple[PurePosixPath, DataFile]], Problems]:
        """Every file, with its path relative to the data set's folder or in a named folder elsewhere, and problems."""
        if not self.path.is_dir():
            raise DataError(f"data.path: {self.path} is not a folder", "Give a folder, or choose data.use.")
        problems, found = Problems(), list[tuple[PurePosixPath, DataFile]]()
        named = [*(self._named.references or ()), self._named.loss_maps, self._named.captions]
        elsewhere = {name: (self.path / Path(name).expanduser()) for name in named if name is not None}
        for name, folder in elsewhere.items():
            if not folder.is_dir():
                here = ", ".join(sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())) or "none"
                raise DataError(
                    f"data.options: there is no folder {name!r} in {self.path}", f"The folders there are: {here}."
                )
        root = Root(self.path, allow_outside=self.settings.allow_outside)
        for relative, path in self._walk(self.path, problems):
            found.append((relative, DataFile(relative.as_posix(), path, root)))
        known = {file.path for _, file in found}
        for name, folder in elsewhere.items():
            outside = Root(folder, allow_outside=self.settings.allow_outside)
            for relative, path in self._walk(folder, problems):
                if path not in known:
                    found.append((PurePosixPath(name) / relative, DataFile(f"{name}/{relative}", path, outside)))
        return found, problems

    def _walk(self, base: Path, problems: Problems) -> Iterator[tuple[PurePosixPath, Path]]:
        """Yield the path of every file, relative to `base` and as it is. A name that is not UTF-8 is a problem."""
        seen: set[str] = set()

        def failed(error: OSError) -> None:
            problems.add(str(error.filename), error.strerror or str(error))

        for folder, folders, files in os.walk(base, onerror=failed, followlinks=True):
            folders[:] = [
                name
                for name in sorted(folders)
                if not name.startswith(".") and self._may_enter(os.path.join(folder, name), seen, problems)
            ]
            for file in sorted(files):
                path = Path(folder, file)
                relative = PurePosixPath(path.relative_to(base).as_posix())
                if file.startswith("."):
                    continue
                if not _is_utf8(file):
                    problems.add(relative.as_posix(), "its name is not UTF-8; rename it")
                    continue
                yield relative, path

    @cached_property
    def _links(self) -> frozenset[str]:
        named = self._named
        return frozenset(n for n in (*(named.references or ()), named.loss_maps, named.captions) if n is not None)

    def _may_enter(self, folder: str, seen: set[str], problems: Problems) -> bool:
        """Whether to read a folder: one that is a link only if the user allows it, and no folder twice."""
        if not _is_utf8(os.path.basename(folder)):
            problems.add(folder, "its name is not UTF-8; rename it")
            return False
        if os.path.islink(folder) and clean(os.path.relpath(folder, self.path)) in self._links:
            return False  # it is walked as a folder of its own, because the user named it
        if os.path.islink(folder) and not self.settings.allow_outside:
            problems.add(folder, "a link to a folder; move it here, or set data.options.allow_outside")
            return False
        real = os.path.realpath(folder)
        new = real not in seen
        seen.add(real)
        return new

    def _refuse_tables(self, found: dict[str, TargetFiles]) -> None:
        """Raise DataError if no picture has a caption, and a table lies beside them that seems to hold the captions."""
        beside = [path for path, _ in self._walked[0] if len(path.parts) == 1 and is_table(path)]
        if beside and self.settings.prompt is None and not any(files.captions for files in found.values()):
            table = self.path / beside[0]
            raise DataError(
                f"{self.path}: no picture has a caption beside it, and {beside[0]} seems to hold the captions",
                f"Give --data {table}.",
            )

    def _record(self, name: str, files: TargetFiles, problems: Problems) -> Record | None:
        """Make the record of a target. None if there is more than one picture of the target."""
        if len(files.targets) > 1:
            problems.add(
                files.targets[1].shown,
                "another picture has the same name; rename one of them",
                detail=files.targets[0].shown,
            )
            return None
        target = files.targets[0]
        prompt = self._prompt(target, files.captions, problems)
        references = in_order(name, files.references, problems)
        if len(files.loss_maps) > 1:
            problems.add(files.loss_maps[1].shown, "a second loss map", detail=f"after {files.loss_maps[0].shown}")
        pictures = {file.shown: Picture(file.shown, file.path) for file in [target, *references, *files.loss_maps]}
        for file in [target, *references, *files.loss_maps]:
            if (problem := file.root.problem(file.path)) is not None:
                problems.add(file.shown, problem, pictures[file.shown])
        return Record(
            id=name,
            origin=target.shown,
            prompt=prompt,
            target=pictures[target.shown],
            references=tuple(pictures[file.shown] for file in references),
            loss_map=pictures[files.loss_maps[0].shown] if files.loss_maps else None,
        )

    def _prompt(self, target: DataFile, captions: Sequence[DataFile], problems: Problems) -> str:
        """The caption of a target, else `data.options.prompt`. A problem is added if a caption is needed and missing.

        Without both, the subject in the name of a folder like `10_woman` is the caption, as for kohya's programs.
        """
        text = ""
        if captions:
            problem = captions[0].root.problem(captions[0].path)
            try:
                text = read_text(captions[0].path).strip() if problem is None else ""
            except ValueError as error:
                problem = str(error)
            if problem is not None:
                problems.add(captions[0].shown, problem)
                return ""
        text = text or self.settings.prompt or ""
        if not text and not captions and self.settings.folder_repeats:
            said = self._layout.repeats(PurePosixPath(target.shown))
            text = "" if said is None else said[2]
        where = captions[0].shown if captions else target.shown if not text else "data.options.prompt"
        if not text and not self.captions.needed:
            return text
        if not text:
            suffix = self._layout.suffixes[0]
            what = "the caption is empty" if captions else f"there is no caption ({suffix} file of the same name)"
            problems.add(where, f"{what}; write one, or set data.options.prompt for all that have none")
        elif (problem := text_problem(text)) is not None:
            problems.add(where, problem)
        return text


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
