"""The hint that names an extra: the command that adds it to the environment that the process runs in."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

import qframe
from qframe.plugins import distribution
from tests.architecture.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose environment `./run` built, and which this process seems to run from."""
    clone = tmp_path / "my clone"
    (clone / ".venv").mkdir(parents=True)
    (clone / ".venv" / "qframe.stamp").touch()
    (clone / "run").touch()
    monkeypatch.setattr(distribution, "_CLONE", clone)
    monkeypatch.setattr(sys, "prefix", str(clone / ".venv"))
    monkeypatch.chdir(clone)
    return clone


def test_the_name_and_the_version_are_those_of_pyproject() -> None:
    assert PROJECT["name"] == distribution.DISTRIBUTION
    assert distribution.version() == PROJECT["version"] == qframe.__version__


def test_in_a_clone_run_adds_the_extra(clone: Path) -> None:
    assert distribution.install_hint("prodigy") == "./run --with prodigy"


def test_from_another_folder_run_has_its_path(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.parent)
    assert distribution.install_hint("prodigy") == f"'{clone}/run' --with prodigy"


def test_an_environment_elsewhere_is_named(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(clone.parent))
    (clone.parent / "qframe.stamp").touch()
    assert distribution.install_hint("lion") == f"QFRAME_VENV={clone.parent} ./run --with lion"


def test_elsewhere_the_pip_of_the_running_interpreter_does(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / ".venv" / "qframe.stamp").unlink()
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert distribution.install_hint("wandb") == "/usr/bin/python3 -m pip install 'qframe-diffusion[wandb]'"


def test_an_environment_without_pip_is_filled_by_uv(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / ".venv" / "qframe.stamp").unlink()
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert distribution.install_hint("wandb") == "uv pip install --python /usr/bin/python3 'qframe-diffusion[wandb]'"


def test_every_extra_that_a_message_names_is_one_of_pyproject() -> None:
    sources = [path.read_text("utf-8") for folder in ("qframe", "plugins") for path in (ROOT / folder).rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"""install_hint\(["'](\w+)["']\)""", text)}
    assert {"tensorboard", "wandb", "parquet", "datasets", "bitsandbytes"} <= named
    assert named <= set(PROJECT["optional-dependencies"])
