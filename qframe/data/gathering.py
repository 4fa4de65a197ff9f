"""Finds out which target each file in a folder of pictures belongs to, and as what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import attrs

from qframe.data.files import Root
from qframe.data.layout import PICTURES, Layout, numbered
from qframe.data.problems import Problems

_UNREADABLE = (".avif", ".heic", ".heif", ".jxl", ".svg", ".psd", ".cr2", ".nef", ".dng")
_REFERENCE = re.compile(r"(?P<name>.+)_ref(?P<number>[1-9]\d{0,3})?")
_LOSS_MAP = re.compile(r"(?P<name>.+)_(?:weight|mask)")
_NO_CAPTIONS = {"readme", "license", "licence", "notice"}


@attrs.frozen(eq=False)
class DataFile:
    """A file of the data set.

    Attributes:
        shown: Its path as messages name it, relative to the data set's folder if it lies in it.
        path: Its path.
        root: The folder that it must stay in.
    """

    shown: str
    path: Path
    root: Root


@attrs.define(eq=False)
class TargetFiles:
    """The files that belong to one target.

    Attributes:
        targets: The target; more than one if several files have the same name apart from their suffix.
        captions: Text files with the prompt.
        loss_maps: Pictures that say where the loss counts.
        references: Reference pictures, each with the number in its name or folder, or None if there is none.
    """

    targets: list[DataFile] = attrs.field(factory=list)
    captions: list[DataFile] = attrs.field(factory=list)
    loss_maps: list[DataFile] = attrs.field(factory=list)
    references: list[tuple[int | None, DataFile]] = attrs.field(factory=list)


def gather(
    files: Sequence[tuple[PurePosixPath, DataFile]], layout: Layout, problems: Problems
) -> dict[str, TargetFiles]:
    """Return the files of each target, by the name of the target. Problems are added for files of no target.

    Args:
        files: Every file, with its path relative to the data set's folder, or in a folder that the user names.
        layout: Which folders and endings say what.
        problems: Gets a problem for each file that belongs to no target, or whose format is not read.
    """
    return _Gathering(layout, problems).gather(files)


class _Gathering:
    """Finds out which target each file belongs to, and as what."""

    def __init__(self, layout: Layout, problems: Problems) -> None:
        self._layout, self._problems = layout, problems
        self._found: dict[str, TargetFiles] = {}

    def gather(self, files: Sequence[tuple[PurePosixPath, DataFile]]) -> dict[str, TargetFiles]:
        """Return the files of each target, by the name of the target. Problems are added for files of no target."""
        others = []
        for path, file in files:
            suffix = path.suffix.lower()
            if suffix in _UNREADABLE:
                text = f"pictures of this format are not read; convert it to one of {', '.join(PICTURES)}"
                self._problems.add(file.shown, text)
            elif suffix in PICTURES and (name := self._target(path)) is not None:
                self._found.setdefault(name, TargetFiles()).targets.append(file)
            elif suffix in PICTURES or (suffix in self._layout.suffixes and path.stem.lower() not in _NO_CAPTIONS):
                others.append((path, file))
        for path, file in others:
            if path.suffix.lower() in PICTURES:
                self._add_picture(path, file)
            else:
                self._add_caption(path, file)
        for one in self._found.values():
            one.captions.sort(key=lambda file: self._layout.suffixes.index(file.path.suffix.lower()))
        return self._found

    def _target(self, path: PurePosixPath) -> str | None:
        """The name of the target that a picture is; None if it is a reference or a loss map."""
        if self._layout.role(path) is not None:
            return None
        bare = path.with_suffix("")
        if _REFERENCE.fullmatch(bare.name) or _LOSS_MAP.fullmatch(bare.name):
            return None
        part, name = self._layout.by_ending(bare.as_posix()) or ("target", bare.as_posix())
        return name if part == "target" else None

    def _add_picture(self, path: PurePosixPath, file: DataFile) -> None:
        bare = path.with_suffix("")
        number, owner = None, None
        if (role := self._layout.role(path)) is not None:
            folder, meaning = role
            part, number = meaning.part, meaning.number
            rest = bare.relative_to(folder).as_posix()
            owner = self._owner(rest)
            if owner is None and part == "references" and (split := numbered(rest)) is not None:
                owner, number = self._owner(split[0]), split[1]
        elif reference := _REFERENCE.fullmatch(bare.name):
            part, number = "references", int(reference["number"]) if reference["number"] else None
            owner = self._owner(bare.with_name(reference["name"]).as_posix())
        elif loss_map := _LOSS_MAP.fullmatch(bare.name):
            part, owner = "weight", self._owner(bare.with_name(loss_map["name"]).as_posix())
        else:
            part, name = self._layout.by_ending(bare.as_posix()) or ("", "")
            owner = self._owner(name)
        if owner is None:
            self._problems.add(file.shown, "belongs to no target: there is no target picture of this name")
        elif part == "references":
            self._found[owner].references.append((number, file))
        elif part == "weight":
            self._found[owner].loss_maps.append(file)

    def _add_caption(self, path: PurePosixPath, file: DataFile) -> None:
        role = self._layout.role(path)
        bare = path.with_suffix("")
        if role is not None and role[1].part == "prompt":
            owner = self._owner(bare.relative_to(role[0]).as_posix())
        else:
            owner = self._owner(self._layout.caption_of(bare.as_posix()))
        if owner is not None:
            self._found[owner].captions.append(file)
        elif path.suffix.lower() == self._layout.suffixes[0]:
            self._problems.add(file.shown, "belongs to no target: there is no target picture of this name")

    def _owner(self, name: str) -> str | None:
        """The target of a name, which may lie in a folder of targets that the name does not have."""
        if name in self._found:
            return name
        inside = [full for folder in self._layout.targets if (full := f"{folder}/{name}") in self._found]
        return inside[0] if len(inside) == 1 else None


def in_order(name: str, references: Sequence[tuple[int | None, DataFile]], problems: Problems) -> list[DataFile]:
    """Sort the references of a target by the numbers in their names.

    A problem is added unless there is a single reference without a number, or their numbers are 1, 2, 3 without a gap;
    they may also begin at 0.
    """
    ordered = sorted(references, key=lambda one: (-1 if one[0] is None else one[0], one[1].shown))
    numbers = [number for number, _ in ordered]
    if numbers not in ([], [None], list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        shown = ", ".join(file.shown for _, file in ordered)
        problems.add(
            name,
            "its references cannot be put in order; one alone has no number (_ref, control), several have 1, 2, ...",
            detail=shown,
        )
    return [file for _, file in ordered]
