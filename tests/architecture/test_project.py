"""pyproject.toml, constraints.txt and the plugin folders agree, and nothing undone is left in the text."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(text) for text in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
]
# Spelt in halves, or this file would not pass its own test.
UNDONE = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
TEXT = {".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def text_files() -> list[Path]:
    folders = [".ci", "configs", "docs", "plugins", "qframe", "tests"]
    files = chain(ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in folders))
    return [f for f in files if f.is_file() and f.suffix in TEXT and f.name != ".git" and "__pycache__" not in f.parts]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_requirement_is_pinned_to_a_version_in_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_requirement_has_a_floor_and_no_ceiling(requirement: Requirement) -> None:
    assert {specifier.operator for specifier in requirement.specifier} == {">="}


def test_constraints_hold_exact_public_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_every_bundled_plugin_has_an_entry_point() -> None:
    modules = {f"{path.parent.name}.plugin" for path in (ROOT / "plugins").glob("*/plugin.py")}
    assert modules <= set(PROJECT["entry-points"]["qframe"].values())


def test_nothing_undone_is_left_in_the_text() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNDONE.search(line)
    ]
    assert found == []


def strangers_installed(text: str) -> list[str]:
    """What would ask pip for `qframe`, which is another project on the package index."""
    pattern = r"""\bpip install\b[^\n`]*[ '"]qframe(?=[\s'"`\[]|$)|\bqframe\[[a-z]|dependencies = \["qframe"\]"""
    return re.findall(pattern, text, re.MULTILINE)


def test_nothing_asks_pip_for_another_project() -> None:
    files = [path for path in text_files() if path.name != "CHANGELOG.md" and path != Path(__file__).resolve()]
    assert [str(path.relative_to(ROOT)) for path in files if strangers_installed(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "pip install qframe",
        "pip install 'qframe[prodigy]'",
        "uv pip install --python .venv/bin/python qframe\n",
        "needs `qframe[bitsandbytes]`",
        'dependencies = ["qframe"]',
    ],
)
def test_a_command_that_installs_another_project_would_be_found(text: str) -> None:
    assert strangers_installed(text)
    assert not strangers_installed(text.replace("qframe", "qframe-diffusion"))


def test_undone_work_would_be_found() -> None:
    assert UNDONE.search("# TO" + "DO: later")
    assert ROOT / "qframe" / "errors.py" in text_files()
    assert ROOT / "run" in text_files()
