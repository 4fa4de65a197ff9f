"""A distribution by somebody else, installed into an environment of its own, and used there from the command line."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.pixels import pixels

SOURCE = Path(__file__).parent / "example_plugin"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that sees this one's packages, and has the plugin besides."""
    folder = tmp_path_factory.mktemp("environment")
    checked([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    outer = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
    source = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    checked([*installer(python), "--no-deps", "--no-build-isolation", str(source)])
    return python


def installer(python: Path) -> list[str]:
    if importlib.util.find_spec("pip"):
        return [str(python), "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check"]
    return ["uv", "pip", "install", "-q", "--offline", "--python", str(python)]


def checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Command:
    def call(*arguments: object, module: str = "qframe") -> subprocess.CompletedProcess[str]:
        command = [str(environment), "-m", module, *map(str, arguments)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=variables)

    return call


def test_installed_plugin_is_listed_with_what_it_offers(run: Command) -> None:
    done = run("plugins", "list")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  ab2 +example +second order", done.stdout, re.M)
    assert re.search(r"^  example-edit +example +", done.stdout, re.M)
    assert re.search(r"^  example +qframe-example 1\.0 +qframe_example\.plugin$", done.stdout, re.M)
    assert "broken" not in done.stdout


def test_plugin_is_not_seen_where_it_is_not_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qframe", "plugins", "list"], capture_output=True, text=True, check=True
    )
    assert "ab2" not in done.stdout


def test_plugin_can_be_left_out(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFRAME_DISABLE_PLUGINS", "example")
    done = run("plugins", "list")
    assert "ab2" not in done.stdout
    assert "disabled: example" in done.stdout


def test_settings_of_the_plugin_are_shown_and_checked(run: Command) -> None:
    shown = run("config", "show", "--family", "example-edit")
    assert re.search(r"^sampler\.options\.order +2 +default +1 forgets", shown.stdout, re.M), shown.stderr
    wrong = run("config", "show", "--family", "example-edit", "--set", "sampler.options.order=3")
    assert wrong.returncode == 2
    assert "sampler.options.order (--set): expected one of 1, 2, got 3" in wrong.stderr


def test_command_of_the_plugin_is_listed_and_prints_what_the_schedule_says(run: Command) -> None:
    assert re.search(r"^  sigmas +Print the noise levels of a sampling run\.$", run("--help").stdout, re.M)
    done = run("sigmas", "--family", "example-edit", "--steps", 4, "--tokens", 64)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [int(step) for step, _ in rows] == [0, 1, 2, 3, 4]
    values = [float(sigma) for _, sigma in rows]
    assert (values[0], values[-1]) == (1, 0)
    assert values == sorted(values, reverse=True)


def test_errors_of_the_command_of_the_plugin_have_qframe_s_exit_codes(run: Command) -> None:
    unknown = run("sigmas", "--family", "example-edti")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no family 'example-edti'; did you mean 'example-edit'")
    missing = run("sigmas", "--family", "example-edit", "--model", "./nowhere")
    assert missing.returncode == 4
    assert "error: model './nowhere': there is no such folder" in missing.stderr
    assert run("sigmas", "--steps", 0).returncode == 2


@pytest.mark.slow
def test_family_of_the_plugin_samples(run: Command, tmp_path: Path) -> None:
    from PIL import Image

    from tests.qwen.tiny import tiny_qwen_model

    model = tiny_qwen_model(tmp_path / "model").folder
    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")
    request = ("sample", "--model", model, "--image", "in.png", "--prompt", "make it blue", "--steps", 4)
    for name, arguments in {
        "ab2": ("--family", "example-edit"),
        "euler": ("--family", "qwen-edit"),
        "first-order": ("--family", "example-edit", "--set", "sampler.options.order=1"),
    }.items():
        done = run(*request, *arguments, "--output", f"{name}.png")
        assert done.returncode == 0, done.stderr
    pictures = {name: pixels(tmp_path / f"{name}.png") for name in ("ab2", "euler", "first-order")}
    assert pictures["first-order"] == pictures["euler"]
    assert pictures["ab2"] != pictures["euler"]


def test_plugin_keeps_the_contract_of_samplers(run: Command) -> None:
    done = run("-q", "-c", os.devnull, "--rootdir", SOURCE, "-p", "no:cacheprovider", SOURCE / "tests", module="pytest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d+ passed", done.stdout, re.M)


@pytest.mark.parametrize(("page", "count"), [("write-a-plugin", 5), ("add-a-command", 1)])
def test_guide_shows_the_plugin_as_it_is(page: str, count: int) -> None:
    guide = (SOURCE.parent.parent / "docs" / "guides" / f"{page}.md").read_text(encoding="utf-8")
    shown = re.findall(r"```\w+\n# (\S+)\n(.*?)```", guide, re.DOTALL)
    own = re.compile(r"my_commands/|.*my-commands", re.DOTALL)  # of the plugin that the guide itself builds
    blocks = [(name, text) for name, text in shown if not own.match(name + text)]
    assert len(blocks) == count
    for name, text in blocks:
        source = (SOURCE / name).read_text(encoding="utf-8")
        missing = [line for line in text.splitlines() if line not in source.splitlines()]
        assert missing == [], name
