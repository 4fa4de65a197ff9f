"""Short forms of the harnesses, each in a process of its own; and that each of them can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tests.chaos.{module}", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)


def test_builds_killed_at_any_moment_lose_nothing_and_end_with_the_same_bits() -> None:
    done = run("cache_build", "--kills", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout


def test_eight_builders_of_which_three_are_killed_lose_only_what_was_not_sealed() -> None:
    done = run("cache_build", "--builders", "8", "--killed", "3", "--rounds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout.startswith("0 kills")


def test_the_harness_of_killed_builds_catches_a_naive_cache() -> None:
    done = run("cache_build", "--kills", "5", "--writer", "naive")
    assert done.returncode == 1, done.stdout + done.stderr
    assert " 0 problems" not in done.stdout


def test_a_pruning_killed_before_any_touch_of_a_file_loses_no_entry() -> None:
    done = run("cache_prune")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 30


def test_the_harness_of_killed_pruning_catches_a_naive_one() -> None:
    done = run("cache_prune", "naive")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is lost" in done.stdout
