"""Writes status.json in a run's folder: what the newest session of the run does, or how it ended.

`qframe runs` reads it. A session that is killed leaves the file as it was, so that a run which says that it is running
may be over: whether the folder is locked tells.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

import attrs

from qframe.errors import QframeError
from qframe.files.run_folder import STATUS_FILE
from qframe.files.storage import write_file
from qframe.train.signals import Stopped

_STOPS = (Stopped, KeyboardInterrupt, SystemExit, GeneratorExit)
_LONGEST = 2000


@attrs.define(eq=False)
class Status:
    """The status of a session of a run.

    Attributes:
        folder: The run's folder.
        writes: Whether this process writes the file; of several processes the first one does.
        about: What the file says; empty before the session has begun.
    """

    folder: Path
    writes: bool = True
    about: dict[str, Any] = attrs.field(factory=dict)

    def begin(self) -> None:
        """Say that the run is running, when nothing can be refused any more."""
        self.about = {"state": "running", "started": _now(), "working_folder": str(Path.cwd())}
        self._write()

    def note(self, **about: Any) -> None:
        """Say more of a session that has begun."""
        if self.about:
            self.about |= about
            self._write()

    def end(self, error: BaseException | None, step: int) -> None:
        """Say how the session ended, if it has begun. A file that cannot be written is no error of its own."""
        if not self.about:
            return
        state = "finished" if error is None else "stopped" if isinstance(error, _STOPS) else "failed"
        told = None
        if error is not None:
            message = error.message if isinstance(error, QframeError) else f"{type(error).__name__}: {error}"
            told = message.strip()[:_LONGEST]
        with contextlib.suppress(OSError, QframeError):  # an error of the run is the one to show
            self.note(state=state, ended=_now(), step=step, error=told)

    def _write(self) -> None:
        if self.writes:
            write_file(self.folder / STATUS_FILE, json.dumps(self.about, indent=1).encode())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
