"""Short forms of the harnesses of training runs, each in a process of its own; and that each of them can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.test_cache import run

pytestmark = pytest.mark.slow


def test_runs_killed_at_any_moment_resume_bit_identical() -> None:
    done = run("training", "--kills", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout


def test_the_harness_of_killed_runs_catches_a_naive_saver() -> None:
    done = run("training", "--kills", "12", "--saver", "naive")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "other bits" in done.stdout


def test_a_reader_never_sees_a_checkpoint_that_is_not_valid() -> None:
    done = run("training", "--saves", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 saves, 0 looks" not in done.stdout


def test_a_killed_process_of_two_that_save_a_sharded_state_leaves_no_torn_checkpoint() -> None:
    done = run("sharded", "--kills", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 kills, 0 of them" not in done.stdout


def test_the_harness_of_sharded_saves_catches_a_naive_saver() -> None:
    done = run("sharded", "--kills", "30", "--saver", "naive")
    assert done.returncode == 1, done.stdout + done.stderr


def test_a_disk_that_runs_full_at_any_write_costs_no_checkpoint() -> None:
    done = run("full_disk", "--every", "25")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout.startswith("0 runs")


def test_a_small_disk_that_really_runs_full_costs_no_checkpoint(tmp_path: Path) -> None:
    small = ["unshare", "-rm", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=8m none {tmp_path}"
    if subprocess.run([*small, mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    harness = f"{mount} && exec {sys.executable} -m tests.chaos.full_disk --disk {tmp_path}"
    done = subprocess.run(
        [*small, harness], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout.startswith("0 runs")
