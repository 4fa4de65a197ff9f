"""`qframe train --nproc`: how it starts, how it ends, and that a resumed run is the run that never stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from qframe.cli import main
from qframe.errors import QframeError, ResourceError
from qframe.train import launch as launching
from qframe.train.launch import launch

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of other processes")

SETTINGS = (
    "train.max_steps=30",
    "train.batch_size=1",
    "train.gradient_accumulation=2",
    "train.checkpoint_every=2",
    "train.learning_rate=0.01",
    "train.ema_decay=0.9",
    "train.caption_dropout=0.2",
    "train.process_timeout=60",
    "data.options.count=6",
    "data.options.validation=0",
    "sample.count=0",
    "device=cpu",
)


def test_the_processes_get_the_command_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(launching, "launch", lambda arguments, count: started.append((arguments, count)) or 3)
    given = ["--family", "qwen-edit", "--set", "a=1", "--set", "b=x y", "--output", "runs/a", "--resume"]
    assert main(["train", *given, "--nproc", "2"]) == 3
    told = ["train", "--family=qwen-edit", "--output=runs/a", "--set=a=1", "--set=b=x y", "--resume=latest"]
    assert started == [(told, 2)]


def test_a_process_that_was_killed_is_named_with_its_signal() -> None:
    with pytest.raises(ResourceError, match="process 1 of 2 was ended by SIGKILL"):
        launching._outcome(1, 2, -signal.SIGKILL)
    with pytest.raises(QframeError, match="ended by SIGSEGV"):
        launching._outcome(0, 2, -signal.SIGSEGV)
    assert launching._outcome(0, 2, 3) == 3


@needs_linux
def test_the_first_code_is_that_of_the_job_and_threads_are_shared_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent and its processes, without qframe in them: a module of that name that only looks around."""
    (tmp_path / "qframe.py").write_text(
        "import os, sys\n"
        "open(os.environ['RANK'], 'w').write(os.environ['OMP_NUM_THREADS'])\n"
        "sys.exit(int(sys.argv[1]) if os.environ['RANK'] == '1' else 0)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert launch(["0"], 2) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["3", "3"]
    assert launch(["5"], 2) == 5
    assert {number: signal.getsignal(number) for number in before} == before


class Job:
    """A run of two processes in a folder."""

    def __init__(self, output: Path, *arguments: str, family: str = "qwen-edit") -> None:
        self.checkpoints = output / "checkpoints"
        command = [sys.executable, "-m", "qframe", "train", "--family", family, "--nproc", "2"]
        for setting in SETTINGS:
            if "--data" in arguments and setting.startswith("data."):
                continue  # of the embedded data set
            command += ["--set", setting]
        self.process = subprocess.Popen(
            [*command, "--output", str(output), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def await_step(self, step: int) -> None:
        deadline = time.monotonic() + 180
        while not any(int(path.name[-8:]) >= step for path in self.checkpoints.glob("step-????????")):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def rank(self, number: int) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if child.environ().get("RANK") == str(number))

    def end(self, within: float) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=within)
        return self.process.returncode, output


@needs_linux
@pytest.mark.slow
def test_a_run_of_two_processes_that_was_stopped_and_killed_ends_with_the_bits_of_one_left_in_peace(
    tmp_path: Path,
) -> None:
    code, output = Job(tmp_path / "whole").end(600)
    assert code == 0, output

    stopped = Job(tmp_path / "broken")
    stopped.await_step(2)
    stopped.process.send_signal(signal.SIGTERM)
    code, output = stopped.end(60)
    assert code == 143, output
    (step,) = re.findall(r"error: stopped at step (\d+); everything is saved", output)
    assert (tmp_path / "broken" / "checkpoints" / f"step-{int(step):08d}").is_dir()

    for number in (1, 0):
        killed = Job(tmp_path / "broken", "--resume")
        killed.await_step(int(step) + 4)
        killed.rank(number).kill()
        code, output = killed.end(60)
        assert code == 6, output
        assert f"process {number} of 2 was ended by SIGKILL" in output
        step = str(int(step) + 4)

    code, output = Job(tmp_path / "broken", "--resume").end(600)
    assert code == 0, output
    whole, broken = (load_file(tmp_path / name / "lora.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


@needs_linux
@pytest.mark.slow
def test_a_process_that_hangs_ends_the_job(tmp_path: Path) -> None:
    setup = Job(tmp_path / "run", "--set", "train.process_timeout=3")
    setup.await_step(2)
    setup.rank(1).suspend()
    code, output = setup.end(3 + 35 + 30)  # the last: this machine may be busy
    assert code == 6, output
    assert output.count("did not answer for train.process_timeout seconds") == 1


@needs_linux
@pytest.mark.slow
def test_what_one_process_finds_wrong_is_told_once(tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        Image.new("RGB", (64, 64), (40 * index, 90, 30)).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text("make the circle blue")
    whole = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(whole[: len(whole) * 2 // 3])  # its header is read by all, the rest by one
    code, output = Job(tmp_path / "run", "--data", str(data), family="qwen-image").end(120)
    assert code == 3, output
    assert output.count("error: ") == 1, output
    assert "3.png" in output
