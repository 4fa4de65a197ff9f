"""Runs the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from qframe.cli import main


@attrs.frozen
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("plugins", "list")` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the architecture of Qwen-Image-Edit."""
    from tests.qwen.tiny import tiny_qwen_checkpoint

    return tiny_qwen_checkpoint(tmp_path_factory.mktemp("tiny")).folder
