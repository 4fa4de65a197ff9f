"""Runs the tests of this folder that need an imitated card: all in one process, because a backend stays registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(marker: str) -> None:
    files = sorted(str(path) for path in HERE.glob("card_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-o", "python_files=card_*.py", "-m", marker, *files]
    done = subprocess.run(command, cwd=HERE.parents[1], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_fast_tests_on_the_card_pass_in_a_process_of_their_own() -> None:
    run("not slow and not gpu")


@pytest.mark.slow
def test_the_slow_tests_on_the_card_pass_in_a_process_of_their_own() -> None:
    run("slow")
