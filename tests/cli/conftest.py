"""Run the command line in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from qframe.cli import main


@attrs.frozen
class Outcome:
    """The exit code of a command, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a command, such as `run("plugins", "list")`, in a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights and the architecture of Qwen-Image-Edit."""
    from tests.qwen.tiny import tiny_qwen_model

    return tiny_qwen_model(tmp_path_factory.mktemp("tiny")).folder
