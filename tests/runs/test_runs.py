"""`qframe runs`: the state of runs, how far they are, and the commands that go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from qframe.errors import DataError, WeightsError
from qframe.files.run_folder import STATUS_FILE
from qframe.files.storage import is_written, lock_folder
from qframe.train.signals import Stopped
from qframe.train.status import Status
from qframe_runs.reading import find_runs, read_run
from tests.cli.conftest import Run, run  # noqa: F401 (fixture)


def made(folder: Path, steps: int = 0, *, status: dict[str, Any] | None = None, config: str = "") -> Path:
    """A run with the metrics of some steps; the loss is 1 / step, every step takes 2 s."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(config or 'family = "qwen-edit"\n[train]\nmax_steps = 50\n')
    lines = [{"step": step, "loss": 1 / step, "seconds": 2.0} for step in range(1, steps + 1)]
    if steps:
        lines.append({"step": steps, "val_loss": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    if status is not None:
        (folder / STATUS_FILE).write_text(json.dumps(status))
    return folder


def test_a_run_is_running_as_long_as_its_folder_is_locked(tmp_path: Path) -> None:
    folder = made(tmp_path / "a b", 30, status={"state": "running", "working_folder": str(Path.cwd())})
    with lock_folder(folder):
        found = read_run(folder)
        assert is_written(folder)
    assert (found.state, found.step, found.steps, found.family) == ("running", 30, 50, "qwen-edit")
    assert found.loss == pytest.approx(sum(1 / step for step in range(11, 31)) / 20)
    assert (found.validation_loss, found.seconds_left) == (0.5, 40.0)
    assert shlex.split(found.command) == ["qframe", "report", "--serve", str(folder)]
    killed = read_run(folder)
    assert (killed.state, killed.seconds_left) == ("stopped", None)
    assert "it was killed" in str(killed.error)
    assert not is_written(folder)


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (None, "finished", None),
        (Stopped(signal.SIGINT, "stopped at step 3; everything is saved", "..."), "stopped", "stopped at step 3"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (DataError("row 3: no picture"), "failed", "row 3: no picture"),
        (RuntimeError("no memory"), "failed", "RuntimeError: no memory"),
    ],
)
def test_how_a_session_ended_is_written_and_read(
    tmp_path: Path, error: BaseException | None, state: str, told: str | None
) -> None:
    folder = made(tmp_path / "run", 3)
    status = Status(folder)
    status.begin()
    status.note(steps=40)
    status.end(error, 3)
    found = read_run(folder)
    assert (found.state, found.steps) == (state, 40)
    assert (told in found.error) if told and found.error else found.error is told
    goes_on = f"qframe train --config {folder}/config.toml --output {folder} --resume"
    assert found.command == (f"qframe report {folder}" if state == "finished" else goes_on)


def test_a_session_that_was_refused_leaves_the_status_of_the_run(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 3, status={"state": "finished"})
    Status(folder).end(WeightsError("cannot resume"), 0)
    assert read_run(folder).state == "finished"


def test_a_status_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    status = Status(tmp_path / "run")
    status.begin()
    (tmp_path / "run" / STATUS_FILE).unlink()
    (tmp_path / "run" / STATUS_FILE).mkdir()
    status.end(RuntimeError("the first error"), 0)


def test_a_run_that_was_started_elsewhere_goes_on_from_there(tmp_path: Path) -> None:
    status = {"state": "stopped", "working_folder": "/data/my work"}
    found = read_run(made(tmp_path / "run", 3, status=status))
    assert found.command.startswith("cd '/data/my work' && qframe train --config ")


def test_a_run_of_an_earlier_version_is_finished_if_its_weights_are_the_newest(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 50)
    assert read_run(folder).state == "stopped"
    (folder / "lora.safetensors").write_bytes(b"x")
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    assert read_run(folder).state == "finished"
    os.utime(folder / "lora.safetensors", (1e8, 1e8))
    assert read_run(folder).state == "stopped", "it went on after that"


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", STATUS_FILE])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[" * 5000, b'{"state": 3, "steps": true}', b"[]", b"train = 3"]
)
def test_damaged_files_leave_values_unknown(tmp_path: Path, name: str, content: bytes) -> None:
    folder = made(tmp_path / "run", 3, status={"state": "failed", "error": "x"})
    (folder / name).write_bytes(content)
    assert read_run(folder).state in ("failed", "stopped")


def test_runs_are_found_in_folders_of_folders_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("b/c", "a", ".hidden"):
        made(tmp_path / name, 1)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("x = 1")
    made(tmp_path / "a" / "checkpoints" / "step-00000001", 1)  # a part of a run
    assert [found.folder for found in find_runs(tmp_path)] == [tmp_path / "a", tmp_path / "b" / "c"]
    assert [found.folder for found in find_runs(tmp_path / "a")] == [tmp_path / "a"]
    with pytest.raises(WeightsError, match="there is no such folder"):
        find_runs(tmp_path / "none")


def test_the_command_prints_a_line_for_each_run_or_json(run: Run, tmp_path: Path) -> None:  # noqa: F811
    evil = {"state": "failed", "error": "bad\u001b[2Jpicture\nmore", "working_folder": str(tmp_path)}
    made(Path("runs/a"), 30, status=evil)
    shown = run("runs")
    assert shown.out.splitlines() == [
        "runs/a  failed    step 30 of 50  loss 0.0533  val_loss 0.5",
        "        bad?[2Jpicture",
        "        qframe train --config runs/a/config.toml --output runs/a --resume",
    ]
    (found,) = json.loads(run("runs", "--json").out)
    assert (found["folder"], found["state"], found["step"], found["steps"]) == ("runs/a", "failed", 30, 50)
    assert run("runs", "nowhere").code == 4
