"""Code that several stages of the embedded model's build use: JSON files, saved states, and progress in the log.

A stage that was killed continues from its last saved state (`Snapshot`).
"""

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
    """Write a value to a file as indented JSON, completely or not at all."""
    storage.write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@attrs.frozen(eq=False)
class Snapshot:
    """The state of an unfinished training run.

    Attributes:
        tensors: Weights, averaged weights and optimizer state, by name.
        step: The number of the next step.
        seconds: The training time so far, in seconds.
    """

    tensors: Mapping[str, torch.Tensor]
    step: int
    seconds: float

    def save(self, path: Path) -> None:
        """Write the state to one safetensors file, completely or not at all."""
        metadata = {"step": str(self.step), "seconds": repr(self.seconds)}
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.tensors.items()}
        storage.write_file(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> "Snapshot":
        """Read a state that `save` wrote."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return cls(tensors, int(metadata["step"]), float(metadata["seconds"]))


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the state of an optimizer as tensors, named `opt.<index of the parameter>.<name of the state>`."""
    return {
        f"opt.{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the state that `optimiser_tensors` returned into an optimizer with the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("opt."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


class Pace:
    """Counts the training time of a run across restarts, and says when to save the next snapshot.

    Args:
        seconds_before: The training time in seconds before this start of the program.
        snapshot_every: Seconds between two snapshots.
    """

    def __init__(self, seconds_before: float, snapshot_every: float) -> None:
        self._start = time.monotonic() - seconds_before
        self._snapshot_every = snapshot_every
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """The training time so far in seconds, including the time before this start of the program."""
        return time.monotonic() - self._start

    def snapshot_due(self) -> bool:
        """Return True if `snapshot_every` seconds have passed since the start, or since this last returned True."""
        due = time.monotonic() - self._last >= self._snapshot_every
        if due:
            self._last = time.monotonic()
        return due


class LogProgress:
    """Writes the progress of a stage to the log at most every `every_seconds` seconds.

    A line has the number of steps, the steps per second, the remaining minutes and the latest metrics.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self._every = every_seconds

    def note(self, text: str) -> None:
        """Write one line of text to the log."""
        logger.info("%s", text)

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """Return a context whose value reports the progress of a task to the log.

        Args:
            name: The name of the task in the log.
            total: The number of steps of the task.
            done: How many of these steps were made before this start of the program.
        """
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
