"""The samples of a run: pictures from the same noise before, during and after training, kept, judged and compared."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import attrs
from PIL import Image

from qframe.files.storage import write_file
from qframe.interfaces import Record, RecordSource
from qframe.pictures.contact_sheet import Row, contact_sheet
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_picture

_MOST_ROWS = 20
_LARGEST_INPUT = 512
"""The longest side, in pixels, of the copies of inputs that are kept with a run's samples."""


@attrs.frozen(kw_only=True)
class GroupResult:
    """How many samples of one group are right.

    Attributes:
        group: The group of the records (`Record.group`).
        count: How many samples the group has.
        judged: How many of them the source could judge; 0 where only a person can judge.
        right: How many of them are right.
    """

    group: str
    count: int
    judged: int
    right: int

    @property
    def rate(self) -> float | None:
        return self.right / self.judged if self.judged else None


def judge(source: RecordSource, records: Sequence[Record], pictures: Sequence[Image.Image]) -> list[GroupResult]:
    """Judge one picture per record. The results are by group, in the order in which the groups first appear."""
    verdicts: dict[str, list[bool | None]] = defaultdict(list)
    for record, picture in zip(records, pictures, strict=True):
        verdicts[record.group].append(source.success(record, picture))
    return [
        GroupResult(
            group=group,
            count=len(values),
            judged=sum(value is not None for value in values),
            right=sum(value is True for value in values),
        )
        for group, values in verdicts.items()
    ]


def comparison_sheet(
    source: RecordSource,
    records: Sequence[Record],
    before: Sequence[Image.Image] | None,
    after: Sequence[Image.Image],
) -> Image.Image:
    """A contact sheet with a row per record: its references, the target, and the samples before and after training.

    The row also says whether the source found the last sample right. If there are many records, some of each group are
    shown. `before` is None where nothing was sampled before training.
    """
    chosen = _selection(records)
    most = max((len(records[i].references) for i in chosen), default=0)
    headings = [*(["reference"] * most), "wanted", *(["before"] if before else []), "after"]
    rows: list[Row] = []
    for i in chosen:
        record = records[i]
        pictures: list[Image.Image | None] = [open_picture(reference) for reference in record.references]
        pictures += [None] * (most - len(pictures))
        pictures += [open_picture(record.target), *([before[i]] if before else []), after[i]]
        rows.append(Row(record.prompt, pictures, source.success(record, after[i]), note=record.group))
    return contact_sheet(rows, headings)


def _selection(records: Sequence[Record]) -> list[int]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[record.group].append(index)
    each = max(_MOST_ROWS // max(len(groups), 1), 1)
    return [index for members in groups.values() for index in members[:each]][:_MOST_ROWS]


def result_lines(before: Sequence[GroupResult] | None, after: Sequence[GroupResult]) -> list[str]:
    """The lines of a small table with each group's success before and after training.

    Groups that the source cannot judge are left out.
    """
    earlier = {result.group: result.rate for result in before or ()}
    lines = []
    width = max((len(result.group) for result in after), default=0)
    for result in after:
        if result.rate is None:
            continue
        was = earlier.get(result.group)
        arrow = "" if was is None else f"{was:6.0%}  ->"
        lines.append(f"{result.group:<{width}}  {arrow} {result.rate:6.0%}   ({result.right} of {result.judged})")
    return lines


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@attrs.frozen(eq=False)
class Validation:
    """The samples in a run's folder, which stay from one session of the run to the next.

    Attributes:
        folder: The folder `samples` of the run.
        source: Judges the samples.
        records: The records that are sampled, in order.
    """

    folder: Path
    source: RecordSource
    records: Sequence[Record]

    def keep_inputs(self) -> None:
        """Save records.json, and small copies of references and targets in the folder inputs.

        If there are many records, only those that the contact sheet shows are saved.
        """
        rows = []
        for index in _selection(self.records):
            record, name = self.records[index], self._name(index)
            files = []
            for role, picture in [
                *((f"reference-{place}", reference) for place, reference in enumerate(record.references, 1)),
                ("target", record.target),
            ]:
                small = open_picture(picture)
                small.thumbnail((_LARGEST_INPUT, _LARGEST_INPUT), Image.Resampling.LANCZOS)
                files.append(f"inputs/{name}-{role}.png")
                write_file(self.folder / files[-1], _png(small))
            *references, target = files
            about = {"id": record.id, "prompt": record.prompt, "group": record.group}
            rows.append({"name": name, **about, "references": references, "target": target})
        write_file(self.folder / "records.json", json.dumps(rows, indent=1).encode())

    def keep(self, moment: str, pictures: Sequence[Image.Image]) -> list[Path]:
        """Save the samples of a moment ("before", "step-000100", "after") as PNG files, and how many are right.

        Returns the files, which are named by the place and the id of their record.
        """
        for stale in (self.folder / moment).glob("*.png"):
            stale.unlink()  # of an earlier session that sampled other records
        files = [self.folder / moment / f"{self._name(index)}.png" for index in range(len(pictures))]
        for file, picture in zip(files, pictures, strict=True):
            write_file(file, _png(picture))
        results = [attrs.asdict(result) for result in judge(self.source, self.records, pictures)]
        write_file(self._results(moment), json.dumps(results, indent=1).encode())
        return files

    def results(self, moment: str) -> list[GroupResult]:
        """How many samples of a moment are right, by group; nothing if there were no samples then."""
        file = self._results(moment)
        return [GroupResult(**row) for row in json.loads(file.read_bytes())] if file.exists() else []

    def pictures(self, moment: str) -> list[Image.Image] | None:
        """The samples of a moment; None if there is not one for each record."""
        files = sorted((self.folder / moment).glob("*.png"))
        if not files or len(files) != len(self.records):
            return None
        return [open_picture(Picture(str(file), file)) for file in files]

    def sheet(self) -> Path | None:
        """Write sheet.png, the contact sheet of the samples before and after training; None if there are no samples."""
        after = self.pictures("after")
        if after is None:
            return None
        file = self.folder / "sheet.png"
        write_file(file, _png(comparison_sheet(self.source, self.records, self.pictures("before"), after)))
        return file

    def _name(self, index: int) -> str:
        """The name of a record's files: its place, and its id without characters that file names may not have."""
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.records[index].id)
        return f"{index:03d}-{safe[:80]}"

    def _results(self, moment: str) -> Path:
        return self.folder / f"{moment}.json"
