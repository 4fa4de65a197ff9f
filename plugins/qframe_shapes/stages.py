"""Resumable stages: a killed training run goes on where it stopped; a finished one leaves a published folder."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import save

from qframe.files import storage
from qframe.progress import Stage

logger = logging.getLogger(__name__)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    storage.write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@attrs.frozen(eq=False)
class Snapshot:
    """Where a training run stood: named tensors, the step and the seconds spent so far."""

    tensors: Mapping[str, torch.Tensor]
    step: int
    seconds: float

    def save(self, path: Path) -> None:
        """Write to one safetensors file, atomically."""
        metadata = {"step": str(self.step), "seconds": repr(self.seconds)}
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.tensors.items()}
        storage.write_file(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> "Snapshot":
        """Read what ``save`` wrote."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return cls(tensors, int(metadata["step"]), float(metadata["seconds"]))


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat named tensors ``opt.<parameter index>.<name>``."""
    return {
        f"opt.{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what ``optimiser_tensors`` took out."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("opt."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


class Pace:
    """Counts the seconds of a run across restarts and says when the next snapshot is due."""

    def __init__(self, seconds_before: float, snapshot_every: float) -> None:
        self._start = time.monotonic() - seconds_before
        self._snapshot_every = snapshot_every
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent training, restarts included."""
        return time.monotonic() - self._start

    def snapshot_due(self) -> bool:
        """True once per interval."""
        due = time.monotonic() - self._last >= self._snapshot_every
        if due:
            self._last = time.monotonic()
        return due


class LogProgress:
    """Progress as log lines, one every ``every_seconds``: done, rate, remaining minutes and the latest metrics."""

    def __init__(self, every_seconds: float = 30.0) -> None:
        self._every = every_seconds

    def note(self, text: str) -> None:
        """One line that a person should read."""
        logger.info("%s", text)

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """A stretch of ``total`` steps, ``done`` of them made before."""
        started = time.monotonic()
        yield _LoggedStage(name, total, done, self._every)
        logger.info("%s: %d, %.0f s", name, total, time.monotonic() - started)


class _LoggedStage:
    def __init__(self, name: str, total: int, done: int, every: float) -> None:
        self._name, self._total, self._first, self._done, self._every = name, total, done, done, every
        self._began = self._last = time.monotonic()

    def advance(self, count: int = 1, **metrics: float) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        rate = (self._done - self._first) / (now - self._began)
        shown = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
        minutes = (self._total - self._done) / rate / 60
        logger.info(
            "%s %d of %d, %.1f/s, %.0f minutes left%s", self._name, self._done, self._total, rate, minutes, shown
        )
