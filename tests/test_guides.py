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
import pytest
import torch
from PIL import Image

import qframe
from qframe import Component
from qframe.cli.app import app
from qframe.interfaces import Sampler

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GUIDE = DOCS / "guides" / "add-a-sampler.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in this language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for named, text in found if named == language]


def commands() -> Iterator[Any]:
    """Every command line of qframe that a page shows, but those of a plugin that is not installed here."""
    for page in PAGES:
        for line in "".join(blocks(page, "")).splitlines():
            command, _, _ = line.partition("#")
            if re.match(r"(qframe|\./run) ", command) and not re.match(r"\./run (test|ARGS)|.*example-edit", command):
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


@pytest.mark.slow
def test_the_python_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model, top to bottom, after two steps of the run whose LoRA it uses."""
    monkeypatch.chdir(tmp_path)
    short = ["train.max_steps=2", "data.options.validation=0", "sample.count=0", "output=runs/qwen-edit"]
    qframe.Trainer(qframe.load_config(family="qwen-edit", overrides=short)).fit()
    page = DOCS / "tutorials" / "from-python.md"
    names: dict[str, Any] = {}
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)
    assert Image.open("edited.png").size == (64, 64)
    assert names["tensor"].shape == (1, 3, 64, 64)
    assert Path("runs/from-python/lora.safetensors").exists()
    assert Path("mine.safetensors").exists()


def test_the_python_of_the_page_on_calls_runs() -> None:
    page = DOCS / "reference" / "pipeline.md"
    names: dict[str, Any] = {}
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)
    assert names["result"].images[0].size == (64, 64)
    assert names["pipe"].interrupt
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
