"""Runs the tests that need an imitated card in a process of their own, because a backend stays registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


FAST = "not slow and not thorough and not gpu"


def run_slow_on_card(request: pytest.FixtureRequest, name: str) -> None:
    """Run the slow tests of the file card_NAME.py, and the thorough ones, too, if this run was asked for them."""
    thorough = "not thorough" not in request.config.getoption("-m")
    run_on_card(name, "slow or thorough" if thorough else "slow and not thorough")


def run_on_card(name: str, marks: str) -> None:
    """Run the tests with these marks of the files card_NAME.py, where NAME may be a pattern."""
    files = sorted(str(path) for path in HERE.glob(f"card_{name}.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-o", "python_files=card_*.py", "-m", marks, *files]
    done = subprocess.run(command, cwd=HERE.parents[1], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
