"""`qframe bench`: benchmarks of plugins by name, none imported before it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import pytest

import qframe_bench.plugin
from qframe.cli import plugin_commands
from qframe.plugins.discovery import Candidate
from qframe.plugins.hookspecs import Component, hookimpl
from qframe.plugins.registry import Registry, load_registry
from tests.cli.conftest import Run


@hookimpl
def qframe_components() -> list[Component]:
    """One benchmark that works, one that is no command, one that is not there."""
    return [
        Component("benchmark", "hello", f"{__name__}:hello", summary="says how often"),
        Component("benchmark", "broken", f"{__name__}:load_registry"),
        Component("benchmark", "absent", "no.such.module:run"),
    ]


@click.command()
@click.option("--times", default=1)
def hello(times: int) -> None:
    click.echo("hello " * times)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = {"acme": sys.modules[__name__], "bench": qframe_bench.plugin}
    found = Registry(Candidate(name, f"{name} 1.0", "", partial(plugins.get, name)) for name in plugins)
    monkeypatch.setattr(plugin_commands, "load_registry", lambda: found)


@pytest.mark.usefixtures("offered")
def test_a_benchmark_of_a_plugin_gets_its_own_options(run: Run) -> None:
    outcome = run("bench", "hello", "--times", "3")
    assert (outcome.code, outcome.out.split()) == (0, ["hello"] * 3)


@pytest.mark.usefixtures("offered")
def test_they_are_listed_with_what_they_measure_and_none_is_imported(run: Run) -> None:
    outcome = run("bench", "--help")
    assert outcome.code == 0
    assert re.search(r"^  hello +says how often$", outcome.out, re.MULTILINE)
    assert re.search(r"^  train +a training step", outcome.out, re.MULTILINE)
    assert "absent" in outcome.out


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("hallo", 2, "Did you mean 'hello'?"),
        ("broken", 7, "is no click command"),
        ("absent", 7, "no.such.module:run cannot be used"),
    ],
)
def test_what_cannot_run_is_named(run: Run, name: str, code: int, message: str) -> None:
    outcome = run("bench", name)
    assert outcome.code == code
    assert message in outcome.err


@pytest.mark.parametrize(
    ("name", "option"), [("transformer", "--gradient-checkpointing"), ("train", "--check"), ("sample", "--guidance")]
)
def test_help_of_a_bundled_benchmark_imports_no_torch(name: str, option: str) -> None:
    script = (
        f"import sys; from qframe.cli import main; code = main(['bench', '{name}', '--help']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


def test_reference_names_every_option_of_the_bundled_benchmarks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    registry = load_registry()
    bundled = {component.name: registry.resolve(component) for component in registry.components("benchmark")}
    assert bundled.keys() == {"encode", "quantise", "sample", "train", "transformer"}
    for name, command in bundled.items():
        assert f"`{name}`" in page
        for parameter in command.params:
            assert any(f"`{option}" in page for option in parameter.opts), (name, parameter.name)


@pytest.mark.parametrize(
    "arguments",
    [["--s", "8,,16"], ["--s", "0"], ["--width", "96", "--head", "64"], ["--repeats", "0"], ["--device", "tpu"]],
)
def test_wrong_options_of_the_transformer_benchmark_end_with_2(run: Run, arguments: list[str]) -> None:
    assert run("bench", "transformer", *arguments).code == 2
