"""Reads from the folders of training runs how far they are. A folder may be unfinished, damaged, or from anybody."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import tomli

from qframe.errors import WeightsError
from qframe.files.run_folder import STATUS_FILE, resume_command
from qframe.files.storage import is_written

State = Literal["running", "finished", "stopped", "failed"]

_TAIL = 256 * 1024
"""How many bytes at the end of metrics.jsonl are read: some hundred steps."""
_LARGEST = 16 * 1024 * 1024
_DEEPEST = 3
_LAST_STEPS = 20
_MARKS = (STATUS_FILE, "sessions.jsonl", "metrics.jsonl", "checkpoints", "samples")
"""A folder with config.toml and one of these is that of a run."""
_KILLED = "it ended without a word: it was killed, or the machine went down"


@attrs.frozen(kw_only=True)
class FoundRun:
    """A training run as its folder tells of it.

    Attributes:
        folder: The run's folder.
        family: The family that is trained; None if the configuration cannot be read.
        state: What the run does, or how it ended.
        step: How many steps are done.
        steps: How many steps the run has; None if that is not known.
        loss: The mean loss of the last steps; None before the first one.
        validation_loss: The newest validation loss; None if there is none among the last steps.
        seconds_left: How long a run that is running will still take for its steps; None if that is not known.
        error: Why the run ended; None where it is running or finished.
        command: What to do next: the command that goes on, or one that shows the run.
    """

    folder: Path
    family: str | None
    state: State
    step: int
    steps: int | None
    loss: float | None
    validation_loss: float | None
    seconds_left: float | None
    error: str | None
    command: str

    def as_json(self) -> dict[str, Any]:
        """Return the run as values of JSON."""
        return {**attrs.asdict(self), "folder": str(self.folder)}


def find_runs(folder: Path) -> list[FoundRun]:
    """Return the runs in a folder and in its folders, by path; or the run that it is.

    Raises:
        WeightsError: There is no such folder.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: there is no such folder", "Give the folder that the runs are in.")
    return [read_run(one) for one in _folders(folder, _DEEPEST)]


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.toml").is_file() and any((folder / mark).exists() for mark in _MARKS):
        yield folder
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # a folder of somebody else
        return
    for path in inner if depth else ():
        yield from _folders(path, depth - 1)


def read_run(folder: Path) -> FoundRun:
    """Read what the folder of a run tells. What is missing or damaged is taken to be unknown."""
    config, status = _toml(folder / "config.toml"), _json(folder / STATUS_FILE)
    lines = _last_metrics(folder / "metrics.jsonl")
    step = max((int(line["step"]) for line in lines), default=0)
    train = config.get("train")
    train = train if isinstance(train, dict) else {}
    steps = _count(status.get("steps")) or (None if "epochs" in train else _count(train.get("max_steps")))
    state, error = _state(folder, status, finished=step > 0 and step == steps)
    losses = [line["loss"] for line in lines if _is_number(line.get("loss"))]
    validation = [line["val_loss"] for line in lines if _is_number(line.get("val_loss"))]
    family = config.get("family")
    return FoundRun(
        folder=folder,
        family=family if isinstance(family, str) else None,
        state=state,
        step=step,
        steps=steps,
        loss=statistics.fmean(losses[-_LAST_STEPS:]) if losses else None,
        validation_loss=validation[-1] if validation else None,
        seconds_left=_left(lines, step, steps) if state == "running" else None,
        error=error,
        command=_command(folder, state, status),
    )


def _state(folder: Path, status: Mapping[str, Any], *, finished: bool) -> tuple[State, str | None]:
    if is_written(folder):
        return "running", None
    told = status.get("state")
    if told in ("finished", "stopped", "failed"):
        error = status.get("error")
        return told, error if isinstance(error, str) and error else None
    if told is None and finished and _has_result(folder):  # of a version without the file
        return "finished", None
    return "stopped", _KILLED if told == "running" else None


def _has_result(folder: Path) -> bool:
    """Whether the trained weights are at least as new as the metrics; those of an earlier end are older."""
    logged = (folder / "metrics.jsonl").stat().st_mtime
    results = (folder / name for name in ("lora.safetensors", "denoiser"))
    return any(result.exists() and result.stat().st_mtime >= logged for result in results)


def _left(lines: list[dict[str, Any]], step: int, steps: int | None) -> float | None:
    seconds = [line["seconds"] for line in lines if _is_number(line.get("seconds"))]
    if not seconds or steps is None:
        return None
    return max(steps - step, 0) * float(statistics.median(seconds[-_LAST_STEPS:]))


def _command(folder: Path, state: State, status: Mapping[str, Any]) -> str:
    if state == "running":
        return shlex.join(["qframe", "report", "--serve", str(folder)])
    if state == "finished":
        return shlex.join(["qframe", "report", str(folder)])
    started = status.get("working_folder")
    if not isinstance(started, str) or Path(started) == Path.cwd():
        return resume_command(folder)
    # The paths in the configuration begin where the run was started.
    return f"cd {shlex.quote(started)} && {resume_command(folder.resolve())}"


def _last_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the metrics of the last steps; lines that are no metrics, or were cut short, are left out."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(file.stat().st_size - _TAIL, 0))
            data = stream.read(_TAIL)
    except OSError:
        return []
    found = []
    for line in data.split(b"\n"):
        try:
            metrics = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(metrics, dict) and _count(metrics.get("step")) is not None:
            found.append(metrics)
    return found


def _count(value: object) -> int | None:
    """Return a value that is a number of steps as it is; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(file: Path) -> str:
    try:
        return "" if file.stat().st_size > _LARGEST else file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomli.loads(_text(file))
    except (ValueError, RecursionError):
        return {}


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
