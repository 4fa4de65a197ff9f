"""Facts about the installed package (`qframe-diffusion` for pip, `qframe` in Python): its version and its extras.

The name `qframe` on the package index belongs to another project, so no hint may ever ask pip for `qframe`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import sys
from pathlib import Path

DISTRIBUTION = "qframe-diffusion"
_CLONE = Path(__file__).resolve().parents[2]
_STAMP = "qframe.stamp"
"""The file that `./run` leaves in an environment that it built."""


def version() -> str:
    """Return the version of qframe that is installed in this environment."""
    return importlib.metadata.version(DISTRIBUTION)


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, such as "prodigy", into the environment that this process runs in.

    In an environment that `./run` built, the command is `./run --with EXTRA`, with the full path of `run` if it is not
    in the working directory. Otherwise it is a command for the running interpreter's pip, or for uv if there is no pip.
    """
    prefix = Path(sys.prefix).resolve()
    if (prefix / _STAMP).is_file() and (_CLONE / "run").is_file():
        elsewhere = "" if prefix == _CLONE / ".venv" else f"QFRAME_VENV={shlex.quote(str(prefix))} "
        run = "./run" if Path.cwd() == _CLONE else shlex.quote(str(_CLONE / "run"))
        return f"{elsewhere}{run} --with {extra}"
    python = shlex.quote(sys.executable)
    package = shlex.quote(f"{DISTRIBUTION}[{extra}]")
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {python} {package}"
    return f"{python} -m pip install {package}"
