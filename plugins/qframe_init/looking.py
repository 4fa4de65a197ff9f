"""Looks at a folder or table of pictures: how it is laid out, what its records have, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from qframe.config.schema import Config, DataConfig
from qframe.data.choose import open_source
from qframe.data.layout import PICTURES
from qframe.data.names import folder_meaning, is_table
from qframe.data.problems import Cause, by_cause
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe.pictures.pixels import open_header, picture_size
from qframe.plugins.registry import Registry

_OPENED = 200
"""The most pictures whose headers are read."""


@attrs.frozen(kw_only=True)
class Found:
    """What was found in a data set.

    Attributes:
        path: The folder or table that is read, which may be a table in the folder that the user gave.
        use: The registered name of the source that reads it.
        options: The options with which it is read.
        records: The records that the source lists, also those with problems.
        references: How many records have 0, 1, 2, ... references.
        loss_maps: How many records have a loss map.
        without_caption: Whether no record has a caption.
        sizes: Height and width in pixels of some targets.
        transparent: Whether a target has transparency.
        notes: How the source understood what it found.
        causes: What is wrong, apart from missing captions if no record has one.
    """

    path: Path
    use: str
    options: Mapping[str, Any]
    records: Sequence[Record]
    references: Mapping[int, int]
    loss_maps: int
    without_caption: bool
    sizes: Sequence[tuple[int, int]]
    transparent: bool
    notes: Sequence[str]
    causes: Sequence[Cause]

    def lines(self) -> list[str]:
        """Say what was found, in a few lines."""
        number = len(self.records)
        lines = [f"{number} record{'s' if number != 1 else ''} in {self.path}, read as {self.use!r}"]
        counts = ", ".join(f"{count} with {references}" for references, count in sorted(self.references.items()))
        lines.append(f"references: {counts if self.references.keys() - {0} else 'none'}")
        if self.loss_maps:
            lines.append(f"loss maps: {self.loss_maps}")
        if self.sizes:
            areas = sorted(height * width / 1e6 for height, width in self.sizes)
            lines.append(f"targets: about {median(areas):.2f} megapixels, from {areas[0]:.2f} to {areas[-1]:.2f}")
        if self.transparent:
            lines.append("some targets are transparent; data.options.alpha_mask = true makes that the loss map")
        if self.without_caption:
            lines.append("captions: none")
        lines += self.notes
        return lines + [f"problem: {cause.line()}" for cause in self.causes]


def look(path: Path, config: Config, registry: Registry, *, prompt: str | None) -> Found:
    """Look at a data set.

    Args:
        path: A folder or a table.
        config: A configuration whose section `data` is replaced.
        registry: The plugins, which offer the sources.
        prompt: The caption for pictures that have none.

    Raises:
        DataError: There is nothing at the path, or nothing in it can be read.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder", "Give a folder of pictures, or a table of them.")
    chosen = _table_in(path) if path.is_dir() else path
    use = _source(chosen, registry)
    options: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    if use == "folder" and (beside := _references_beside(chosen)):
        options["references"] = beside
    found = _survey(chosen, use, options, config, registry, stand_in=prompt is None)
    return found


def _survey(
    path: Path, use: str, options: dict[str, Any], config: Config, registry: Registry, *, stand_in: bool
) -> Found:
    """Read the records. Where no record has a caption, they are read with a stand-in, to find what else is wrong."""
    cls = registry.resolve(registry.component("source", use), "options")

    def read(more: Mapping[str, Any]) -> tuple[Any, Any]:
        made = None if cls is None else cls(**{**options, **more})
        source = open_source(attrs.evolve(config, data=DataConfig(use=use, path=str(path), options=made)), registry)
        return source, source.survey()

    source, survey = read({})
    missing = {one.origin for one in survey.problems if "caption" in one.message or "prompt" in one.message}
    without = stand_in and bool(survey.records) and len(missing) >= len(survey.records)
    if without:
        source, survey = read({"prompt": "?"})
    sizes, transparent = _opened([*survey.records, *survey.validation])
    records = [*survey.records, *survey.validation]
    return Found(
        path=path,
        use=use,
        options=options,
        records=records,
        references=Counter(len(record.references) for record in records),
        loss_maps=sum(record.loss_map is not None for record in records),
        without_caption=without,
        sizes=sizes,
        transparent=transparent,
        notes=source.notes(),
        causes=by_cause(survey.problems),
    )


def _opened(records: Sequence[Record]) -> tuple[list[tuple[int, int]], bool]:
    """Sizes of some targets, spread over the records, and whether one of them has transparency."""
    step = max(len(records) // _OPENED, 1)
    sizes, transparent = [], False
    for record in records[::step]:
        try:
            image = open_header(record.target)
            transparent = transparent or "A" in image.getbands() or "transparency" in image.info
            sizes.append(picture_size(record.target))
        except DataError:
            continue  # the check names it
    return sizes, transparent


def _table_in(folder: Path) -> Path:
    """The table in a folder that holds its captions; the folder itself if it has captions of its own, or no table.

    Raises:
        DataError: There are several tables.
    """
    tables = sorted(path for path in folder.iterdir() if is_table(path))
    if not tables or any(folder.rglob("*.txt")) or any(folder.rglob("*.caption")):
        return folder
    if len(tables) > 1 and not all(path.suffix == ".parquet" for path in tables):
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{folder}: {names} may each hold the captions", f"Give one: qframe init {tables[0]}")
    return folder if tables[0].suffix == ".parquet" else tables[0]


def _source(path: Path, registry: Registry) -> str:
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return "datasets"
    if path.is_dir() and any(path.glob("*.parquet")) and not _has_pictures(path):
        return "parquet"
    return registry.source_for(str(path))


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURES for path in folder.rglob("*"))


def _references_beside(folder: Path) -> tuple[str, ...]:
    """Folders of references beside a folder of targets, as in `targets` and `control`, as paths relative to it.

    They count if the folder has none of its own, and all of them have a name of the targets.
    """
    own = folder_meaning(folder.name)
    if own is None or own.part != "target" or any(path.is_dir() for path in folder.iterdir()):
        return ()
    stems = {path.stem for path in folder.iterdir() if path.suffix.lower() in PICTURES}
    found = []
    for other in sorted(folder.resolve().parent.iterdir()):
        meaning = folder_meaning(other.name)
        if meaning is None or meaning.part != "references" or not other.is_dir():
            continue
        if stems & {path.stem for path in other.iterdir() if path.suffix.lower() in PICTURES}:
            found.append(((meaning.number or 0), f"../{other.name}"))
    return tuple(name for _, name in sorted(found))
