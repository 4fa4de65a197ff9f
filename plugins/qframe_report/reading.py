"""Reads the files that a training run wrote into its folder.

A file that is missing or damaged is left out, and `RunFiles.gaps` has a sentence about it.

The folder is not trusted: the run may be unfinished or of an earlier version, and the folder may come from a stranger.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import tomli

from qframe.errors import WeightsError
from qframe.train.sessions import SESSIONS_FILE

_LARGEST_FILE = 16 * 1024 * 1024
_MOMENT = re.compile(r"before|after|step-(\d{1,12})")
_OF_PROMPT = re.compile(r"prompt-\d{1,9}")
VALID_TOKENS = "valid_tokens"  # name of a metric made here: the sum of the three of _PARTS
_PARTS = ("target_tokens", "reference_tokens", "text_tokens")
_MOST_PLAIN_ROWS = 20  # records shown of a run without records.json


@attrs.frozen(eq=False)
class Series:
    """The finite values of one metric, in the order in which the run wrote them.

    Attributes:
        steps: The training step of each value, [S].
        values: The values, [S].
    """

    steps: np.ndarray[Any, np.dtype[np.int64]]
    values: np.ndarray[Any, np.dtype[np.float64]]

    def __len__(self) -> int:
        return len(self.steps)


@attrs.frozen(eq=False, kw_only=True)
class SampleRow:
    """A validation record and the pictures that were sampled for it.

    Attributes:
        name: Name of the record's picture files, without the suffix.
        record: The record's id, by which several runs are compared; for a run that did not store it, what its files are
            named by. The prompts of `sample.prompts`, whose ids are numbers alone, belong to it.
        prompt: The record's prompt; the name of the files if the run did not store the prompt.
        group: The record's group; "" if it has none.
        references: Files of the record's reference pictures.
        target: File of the record's target picture; None if the run did not store it.
        samples: Files of the sampled pictures, by the `key` of the `Moment` at which they were sampled.
    """

    name: str
    record: str
    prompt: str
    group: str
    references: Sequence[Path]
    target: Path | None
    samples: Mapping[str, Path]


@attrs.frozen(eq=False, kw_only=True)
class Moment:
    """A time of the run at which pictures were sampled.

    Attributes:
        key: Name of the folder of the samples: "before" or "after" (training), or for example "step-000100".
        step: How many training steps were done; None if `key` is "before" or "after".
        results: How many samples were right and how many were judged, by the records' group.
    """

    key: str
    step: int | None
    results: Mapping[str, tuple[int, int]]

    @property
    def label(self) -> str:
        """The name that the page shows: "before", "after", or for example "step 100"."""
        return self.key if self.step is None else f"step {self.step}"


@attrs.frozen(eq=False, kw_only=True)
class RunFiles:
    """Everything that was read from the folder of one run.

    Attributes:
        name: Name of the run's folder.
        config: The values of the configuration, by dotted key.
        series: The metrics, by name.
        sessions: For each start of the run, what that start wrote into the file of sessions, the first start first.
        moments: The times at which pictures were sampled, in order.
        rows: The validation records with their sampled pictures.
        has_result: Whether the folder has trained weights that are at least as new as the metrics.
        gaps: A sentence for each file that is missing or damaged.
    """

    name: str
    config: Mapping[str, Any]
    series: Mapping[str, Series]
    sessions: Sequence[Mapping[str, Any]]
    moments: Sequence[Moment]
    rows: Sequence[SampleRow]
    has_result: bool
    gaps: Sequence[str]

    @property
    def last_step(self) -> int:
        """The last training step that a metric was written for; 0 if there is none."""
        return max((int(series.steps[-1]) for series in self.series.values() if len(series)), default=0)

    @property
    def wanted_steps(self) -> int | None:
        """The number of steps that the run is configured for; None if it is unknown or the run counts epochs."""
        wanted = None if "train.epochs" in self.config else self.config.get("train.max_steps")
        return wanted if isinstance(wanted, int) else None

    @property
    def finished(self) -> bool:
        """Whether the run wrote its trained weights after the last of its configured steps."""
        return self.has_result and self.wanted_steps in (None, self.last_step)

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value of the configuration came from (such as a file or "default"), by dotted key.

        The source that the last session (start of the run) stored for a key counts, with one exception. A session that
        was started from the run's own config.toml names that file, which does not say who chose the value. Such a
        source counts only if no earlier session named another.
        """
        found: dict[str, str] = {}
        for session in self.sessions:
            stored = session.get("sources")
            for key, source in (stored if isinstance(stored, dict) else {}).items():
                if key not in found or Path(str(source).rpartition(":")[0]).name != "config.toml":
                    found[key] = source
        return found

    def about(self, key: str) -> Any:
        """Return what the last start of the run stored under this key, such as "data" or "machine"; None if nothing."""
        return self.sessions[-1].get(key) if self.sessions else None


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a run as far as its files can be read.

    Raises:
        WeightsError: `folder` has neither a config.toml nor a metrics.jsonl, so no run wrote it.
    """
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("config.toml", "metrics.jsonl")):
        raise WeightsError(
            f"{folder}: there is no run here: neither config.toml nor metrics.jsonl",
            "Give the folder of a run, the --output of `qframe train`.",
        )
    gaps: list[str] = []
    config = _read_config(folder / "config.toml", gaps)
    moments = _moments(folder / "samples", gaps)
    return RunFiles(
        name=folder.resolve().name,
        config=config,
        series=_read_metrics(folder / "metrics.jsonl", gaps),
        sessions=_read_sessions(folder / SESSIONS_FILE, gaps),
        moments=moments,
        rows=_rows(folder / "samples", [moment.key for moment in moments], gaps),
        has_result=_has_result(folder),
        gaps=gaps,
    )


def _has_result(folder: Path) -> bool:
    """Whether there are weights at least as new as the metrics.

    A run that was resumed after its end may still have the weights of the earlier end; these are older.
    """
    metrics = folder / "metrics.jsonl"
    logged = metrics.stat().st_mtime if metrics.is_file() else 0.0
    results = (folder / name for name in ("lora.safetensors", "denoiser"))
    return any(result.exists() and result.stat().st_mtime >= logged for result in results)


def _text(file: Path, gaps: list[str]) -> str | None:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            gaps.append(f"{file.name} is larger than {_LARGEST_FILE >> 20} MB and was left out.")
            return None
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _read_config(file: Path, gaps: list[str]) -> dict[str, Any]:
    text = _text(file, gaps)
    if text is None:
        gaps.append(f"There is no {file.name}: the configuration is not known.")
        return {}
    try:
        return dict(_leaves(tomli.loads(text), ()))
    except (ValueError, RecursionError):
        gaps.append(f"{file.name} is damaged: the configuration is not known.")
        return {}


def _leaves(value: Any, key: tuple[str, ...]) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(".".join(key), value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*key, name))]


def _read_metrics(file: Path, gaps: list[str]) -> dict[str, Series]:
    """Read all metrics by name, and skip lines that are incomplete because the run was killed."""
    steps: dict[str, array[int]] = {}
    values: dict[str, array[float]] = {}
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    metrics = json.loads(line)
                    step = metrics.pop("step")
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    continue
                if not _is_number(step) or not 0 <= step < 2**62:
                    continue
                if all(_is_number(metrics.get(part)) for part in _PARTS):
                    metrics[VALID_TOKENS] = sum(metrics[part] for part in _PARTS)
                for name, value in metrics.items():
                    if _is_number(value) and math.isfinite(value):
                        steps.setdefault(name, array("q")).append(int(step))
                        values.setdefault(name, array("d")).append(float(value))
    except OSError:
        pass
    if not steps:
        gaps.append(f"{file.name} holds no step yet: there are no curves.")
    return {name: Series(np.array(steps[name]), np.array(values[name])) for name in steps}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _read_sessions(file: Path, gaps: list[str]) -> list[dict[str, Any]]:
    sessions = []
    for line in (_text(file, gaps) or "").splitlines():
        try:
            session = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(session, dict):
            sessions.append(session)
    if not sessions:
        gaps.append(
            f"There is no {file.name} (the run is of an earlier version, or ended while it was encoding): where values "
            "come from, the data, the machine and the licence are not known."
        )
    return sessions


def _moments(folder: Path, gaps: list[str]) -> list[Moment]:
    """Return the times at which pictures were sampled: before training, at steps in order, after training."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _MOMENT.fullmatch(path.name)
        if match and path.is_dir():
            step = None if match[1] is None else int(match[1])
            found.append(Moment(key=path.name, step=step, results=_results(folder / f"{path.name}.json", gaps)))
    if not found:
        gaps.append("No pictures were sampled yet.")
    place = {"before": -1.0, "after": math.inf}
    return sorted(found, key=lambda moment: place.get(moment.key, moment.step or 0))


def _results(file: Path, gaps: list[str]) -> dict[str, tuple[int, int]]:
    """Read how many samples were right and how many were judged, by group; groups without judgement are left out."""
    text = _text(file, gaps)
    try:
        rows = [] if text is None else json.loads(text)
        return {str(row["group"]): (int(row["right"]), int(row["judged"])) for row in rows if int(row["judged"]) > 0}
    except (ValueError, TypeError, KeyError, RecursionError):
        gaps.append(f"samples/{file.name} is damaged: its verdicts are left out.")
        return {}


def _rows(folder: Path, moments: Sequence[str], gaps: list[str]) -> list[SampleRow]:
    text = _text(folder / "records.json", gaps)
    try:
        stored = None if text is None else json.loads(text)
        if stored is not None:
            return [_stored_row(folder, row, moments) for row in stored]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        gaps.append("samples/records.json is damaged: prompts and inputs of the samples are not known.")
    else:
        if moments:
            gaps.append("samples/records.json is missing: prompts and inputs of the samples are not known.")
    names = sorted({file.stem for moment in moments for file in (folder / moment).glob("*.png")})
    return [
        SampleRow(
            name=name,
            record=_id_in(name),
            prompt=name,
            group="",
            references=(),
            target=None,
            samples=_samples(folder, name, moments),
        )
        for name in names[:_MOST_PLAIN_ROWS]
    ]


def _stored_row(folder: Path, row: Mapping[str, Any], moments: Sequence[str]) -> SampleRow:
    name = str(row["name"])
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file name")
    record, prompt = row.get("id"), str(row["prompt"])
    record = record if isinstance(record, str) else _id_in(name)
    return SampleRow(
        name=name,
        record=f"{record}: {prompt}" if _OF_PROMPT.fullmatch(record) else record,
        prompt=prompt,
        group=str(row["group"]),
        references=[_input(folder, file) for file in row["references"]],
        target=_input(folder, row["target"]),
        samples=_samples(folder, name, moments),
    )


def _id_in(name: str) -> str:
    """Return the id in the name of a record's files, which begins with the record's place among all."""
    return re.sub(r"^\d+-", "", name)


def _input(folder: Path, file: object) -> Path:
    """Return the path of an input picture.

    Raises:
        ValueError: The file would lie outside the folder inputs/.
    """
    path = Path(str(file))
    if path.parent != Path("inputs") or path.name == "..":
        raise ValueError(f"{file!r} does not lie in inputs/")
    return folder / path


def _samples(folder: Path, name: str, moments: Sequence[str]) -> dict[str, Path]:
    files = {moment: folder / moment / f"{name}.png" for moment in moments}
    return {moment: file for moment, file in files.items() if file.is_file()}
