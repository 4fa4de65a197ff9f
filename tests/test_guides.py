"""What the documentation shows works: commands are commands, configurations load, code runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import qframe
from docs import make_pictures
from qframe import Component
from qframe.cli.app import app
from qframe.interfaces import Sampler
from qframe_shapes.options import ShapesOptions
from qframe_shapes.source import ShapesSource
from tests import fake_distributions

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GUIDE = DOCS / "guides" / "add-a-sampler.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in this language; "" for those that name none."""
    return [text for named, text in make_pictures.fenced(page) if named == language]


# Commands of the script, and those that need a plugin which is not installed here: they have tests of their own.
NOT_HERE = r"\./run (test|ARGS)|.*example-edit|qframe loras"


def commands() -> Iterator[Any]:
    """Every command line of qframe that a page shows, but those of a plugin that is not installed here."""
    for page in PAGES:
        for line in "".join(blocks(page, "")).replace("\\\n", " ").splitlines():
            command, _, _ = line.partition("#")
            if re.match(r"(qframe|\./run) ", command) and not re.match(NOT_HERE, command):
                yield pytest.param(shlex.split(command)[1:], id=f"{page.relative_to(ROOT)}: {command.strip()}")


def parse(arguments: list[str]) -> None:
    """Read a command line without doing what it says. click.UsageError: there is no such command or option."""
    command: click.Command = app
    rest = list(arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"no such command {name!r}")
        command = found
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context("qframe", rest)


@pytest.mark.parametrize("arguments", list(commands()))
def test_a_command_that_is_shown_can_be_given(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for flag, value in itertools.pairwise(arguments):
        if flag in ("--image", "--mask"):
            Image.new("RGB", (64, 64)).save(value)
    parse(arguments)


@pytest.mark.parametrize("line", ["qframe trian", "qframe train --famly x", "qframe cache clean", "qframe sample"])
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line.split()[1:])


CONFIGURATIONS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "toml"))
    if re.search(r"^family = ", text, re.MULTILINE)
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_a_configuration_that_is_shown_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "shown.toml").write_text(text, encoding="utf-8")
    assert qframe.load_config(tmp_path / "shown.toml").family


TUTORIALS = [page for page in sorted((DOCS / "tutorials").glob("*.md")) if make_pictures.shown(page)]
SHORT = ["--set", "train.max_steps=2", "--set", "data.options.validation=0", "--set", "sample.count=0"]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_picture_of_a_tutorial_is_one_that_its_page_makes(page: Path) -> None:
    """By name; the next test looks at pixels."""
    written = set(re.findall(r"[\w-]+\.png", "".join(text for _, text in make_pictures.fenced(page))))
    for name, file in make_pictures.shown(page).items():
        assert {name, re.sub(r"-\d+\.png$", ".png", name)} & written, name
        assert file.stat().st_size <= make_pictures.LARGEST
    assert {file.name for file in (make_pictures.IMAGES / page.stem).iterdir()} == set(make_pictures.shown(page))


def test_there_are_no_pictures_of_tutorials_that_are_not() -> None:
    assert {folder.name for folder in make_pictures.IMAGES.iterdir()} == {page.stem for page in TUTORIALS}


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_commands_of_a_tutorial_make_its_pictures(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a page trains, it does so for two steps here, and its pictures are not compared."""
    monkeypatch.chdir(tmp_path)
    _write_pairs(Path("pictures"))
    make_pictures.run(page, SHORT)
    trains = any(
        arguments[0] == "train" for text in blocks(page, "") for arguments in make_pictures.command_lines(text)
    )
    for name, file in make_pictures.shown(page).items():
        with Image.open(name) as made, Image.open(file) as shown:
            again = make_pictures.enlarged(made)
            assert again.size == shown.size
            assert trains or _distance(again, shown) < 2, f"{name} is not the picture of the page"


def _distance(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference, of 255."""
    first, second = (np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in (a, b))
    return float(np.abs(first - second).mean())


def test_another_picture_would_be_found() -> None:
    folder = make_pictures.IMAGES / "edit-inpaint"
    with Image.open(folder / "everywhere.png") as a, Image.open(folder / "inside.png") as b:
        assert _distance(a, b) > 2 > _distance(a, a)


def _write_pairs(folder: Path) -> None:
    """Pictures of a reader's own, as the tutorials lay them out."""
    folder.mkdir()
    for number, record in enumerate(ShapesSource(ShapesOptions(count=6), None).records()):
        for name, picture in ((f"{number:02}", record.target), (f"{number:02}_ref", record.references[0])):
            (folder / f"{name}.png").write_bytes(picture.read())
        (folder / f"{number:02}.txt").write_text(record.prompt, encoding="utf-8")


def test_the_loop_of_the_page_is_short_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "guides" / "your-own-loop.md"
    names: dict[str, Any] = {}
    texts = blocks(page, "python")
    assert len(texts[0].splitlines()) <= 30
    for text in texts:
        exec(compile(text, str(page), "exec"), names)
    assert len(names["losses"]) == 6
    assert names["trainer"].global_step == 6
    assert all(np.isfinite(value) for value in (*names["losses"], names["sharpness"]))
    assert any(bool(weight.any()) for name, weight in names["state"].parameters.items() if "lora_B" in name)
    assert Path("mine.safetensors").exists()


def test_the_python_of_the_page_on_calls_runs() -> None:
    page = DOCS / "reference" / "pipeline.md"
    names: dict[str, Any] = {}
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)
        if "_interrupt" in text:
            assert names["pipe"].interrupt
    assert names["result"].images[0].size == (64, 64)
    assert [one.size for one in (*names["seen"], names["picture"])] == [(64, 64)] * 3
    assert names["pipe"].parts.denoiser.module.is_cache_enabled


def block(first_line: str) -> str:
    """The fenced block of the guide that begins with this comment."""
    (found,) = (
        text
        for text in re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        if text.startswith(first_line)
    )
    return found


def run(first_line: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block(first_line), str(GUIDE), "exec"), names)
    return names


def test_sampler_of_the_guide_is_of_second_order() -> None:
    """dx/dsigma = x from 1 to 0 divides by e; halving the step divides the error by four."""
    sampler: Sampler = run("# my_samplers/midpoint.py")["MidpointSampler"]()
    start = torch.ones(1, 1, dtype=torch.float64)

    def error(steps: int) -> float:
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return float(sampler.sample(lambda x, sigma: x, start, sigmas) - torch.e**-1)

    assert 3.8 < error(20) / error(40) < 4.2


def test_sampler_of_the_guide_obeys_both_callbacks() -> None:
    sampler: Sampler = run("# my_samplers/midpoint.py")["MidpointSampler"]()
    steps: list[int] = []

    def stop_after_two(step: int) -> bool:
        steps.append(step)
        return step == 1

    result = sampler.sample(
        lambda x, sigma: torch.zeros_like(x),
        torch.zeros(1, 1),
        torch.linspace(1, 0, 11),
        after_step=lambda x, step: x + 1,
        on_step=stop_after_two,
    )
    assert steps == [0, 1]
    assert result.item() == 2


def test_sampler_of_the_guide_keeps_the_contract(tmp_path: Path) -> None:
    """The test that the guide shows, run on the sampler that it shows."""
    for file in ("my_samplers/midpoint.py", "tests/test_midpoint.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(block(f"# {file}"), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        tmp_path,
        "tests",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* passed", done.stdout)


def test_declaration_of_the_guide_names_the_class_of_the_guide() -> None:
    (component,) = run("# my_samplers/plugin.py")["qframe_components"]()
    assert isinstance(component, Component)
    assert (component.kind, component.name) == ("sampler", "midpoint")
    module, _, name = component.target.partition(":")
    assert block("# " + module.replace(".", "/") + ".py").count(f"class {name}(") == 1
    project = tomllib.loads(block("# pyproject.toml"))["project"]
    assert project["entry-points"]["qframe"] == {"my-samplers": "my_samplers.plugin"}


COMMAND_GUIDE = DOCS / "guides" / "add-a-command.md"


@pytest.fixture
def command_of_the_guide(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has the guide's plugin, as if it had been installed."""
    found = {text.split("\n", 1)[0][2:]: text for text in blocks(COMMAND_GUIDE, "python")}
    modules = {name: text for name, text in found.items() if name.startswith("my_commands/")}
    assert set(modules) == {"my_commands/loras.py", "my_commands/plugin.py"}
    (project,) = (tomllib.loads(text)["project"] for text in blocks(COMMAND_GUIDE, "toml"))
    fake_distributions.install(tmp_path, project["name"], project["entry-points"]["qframe"], {})
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def test_command_of_the_guide_lists_loras(command_of_the_guide: dict[str, str], tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qframe", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=command_of_the_guide
        )

    assert re.search(r"^  loras +List the LoRA files in a folder\.$", call("--help").stdout, re.MULTILINE)
    assert "qframe loras runs" in call("loras", "--help").stdout
    empty = call("loras", "runs")
    assert (empty.returncode, empty.stdout) == (3, "")
    assert empty.stderr == "error: runs: there is no LoRA file here\nGive a folder that `qframe train` wrote into.\n"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    matrices = {f"x.to_q.lora_{side}.weight": torch.zeros(shape) for side, shape in (("A", (4, 8)), ("B", (8, 4)))}
    save_file(matrices, tmp_path / "runs" / "mine" / "lora.safetensors")
    assert call("loras", "runs").stdout == "runs/mine/lora.safetensors  rank 4, 1 layers\n"


def test_the_codec_of_its_guide_passes_the_contract_and_is_what_its_plugin_declares(tmp_path: Path) -> None:
    """Its files are written where the page says, and its tests are run as an author runs them."""
    for text in blocks(DOCS / "guides" / "add-a-codec.md", "python"):
        name = re.match(r"# (\S+\.py)\n", text)
        assert name is not None
        file = tmp_path / name[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "my_codec" / "__init__.py").touch()
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 6  # type: ignore[index]
    code = (
        "from my_codec.plugin import qframe_components\n"
        "from qframe.plugins.offers import Offer\n"
        "from qframe.interfaces import LatentCodec\n"
        "(codec,) = qframe_components()\n"
        "assert Offer(codec, 'mine').implementation(LatentCodec).__name__ == 'CellCodec'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
