"""What a user installs holds the core, every bundled plugin and its data, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from docs.make_pictures import fenced
from tests.architecture.source import ROOT, project
from tests.architecture.test_project import PROJECT

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ["qframe", "plugins", "configs"]:
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
def test_wheel_holds_the_configurations(wheel: zipfile.ZipFile) -> None:
    files = {f"qframe/config/bundled/{path.name}" for path in (ROOT / "configs").glob("*.toml")}
    assert files <= set(wheel.namelist())


@pytest.mark.slow
def test_the_python_of_the_tutorial_runs_in_an_empty_folder_with_what_is_installed(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """Top to bottom on the embedded model, with few steps, after two steps of the run whose LoRA it uses."""
    installed, work = tmp_path / "installed", tmp_path / "work"
    wheel.extractall(installed)
    work.mkdir()
    few = '"train.max_steps=2", "data.options.validation=0", "data.options.count=8", "sample.count=0"'
    program = [
        "import qframe",
        f"assert qframe.__file__.startswith({str(installed)!r}), qframe.__file__",
        "assert qframe.load_config('qwen-edit-24gb').family == 'qwen-edit'",
        f'qframe.Trainer(qframe.load_config(family="qwen-edit", overrides=[{few}, "output=runs/qwen-edit"])).fit()',
        *(text for language, text in fenced(ROOT / "docs" / "tutorials" / "from-python.md") if language == "python"),
        "assert Image.open('edited.png').size == (64, 64)",
        "assert tensor.shape == (1, 3, 64, 64)",
    ]
    text = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", "\n".join(program))
    (tmp_path / "program.py").write_text(text.replace('"train.max_steps=50"', few))
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "runs/from-python/lora.safetensors").exists()
    assert (work / "mine.safetensors").exists()


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
