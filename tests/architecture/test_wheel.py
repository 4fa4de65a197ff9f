"""What a user installs holds the core, every bundled plugin and its data, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, project
from tests.architecture.test_project import PROJECT

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ["qframe", "plugins"]:
        shutil.copytree(ROOT / folder, source / folder, ignore=skip)
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


def path_in_wheel(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return (relative.relative_to("plugins") if relative.parts[0] == "plugins" else relative).as_posix()


@pytest.mark.slow
def test_wheel_holds_every_module_and_no_other(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.endswith(".py")}
    assert inside == {path_in_wheel(module.path) for module in project().values()}


@pytest.mark.slow
def test_wheel_holds_the_embedded_model(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "plugins" / "qframe_shapes" / "checkpoint"
    files = {path_in_wheel(path) for path in folder.rglob("*") if path.is_file()}
    assert files <= set(wheel.namelist())


@pytest.mark.slow
def test_wheel_stays_small(wheel: zipfile.ZipFile) -> None:
    assert sum(item.compress_size for item in wheel.infolist()) < 17 * MEBIBYTE


@pytest.mark.slow
def test_wheel_holds_entry_points_licence_and_types(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    (entries,) = (name for name in names if name.endswith("entry_points.txt"))
    parser = ConfigParser()
    parser.read_string(wheel.read(entries).decode())
    assert dict(parser["qframe"]) == PROJECT["entry-points"]["qframe"]
    assert dict(parser["console_scripts"]) == PROJECT["scripts"]
    assert "qframe/py.typed" in names
    assert {"qframe_report/templates/page.html.jinja", "qframe_report/templates/page.css"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
