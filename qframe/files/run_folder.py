"""What commands need to know of a run's folder that they do not write. Imports no torch."""

from __future__ import annotations

import shlex
from pathlib import Path

STATUS_FILE = "status.json"
"""The file in a run's folder that says what the newest session of the run does, or how it ended."""


def resume_command(folder: Path) -> str:
    """Return the command that goes on with the run in a folder, quoted for a shell."""
    return shlex.join(["qframe", "train", "--config", str(folder / "config.toml"), "--output", str(folder), "--resume"])
