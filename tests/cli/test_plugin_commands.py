"""Commands that plugins offer: listed without an import, imported when called, and never in the way of the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qframe.cli import plugin_commands
from qframe.cli.app import app
from qframe.errors import ConfigError, DataError, QframeError, WeightsError
from qframe.plugins.discovery import Candidate
from qframe.plugins.hookspecs import Component, hookimpl
from qframe.plugins.registry import CORE_COMMANDS, Registry
from tests.cli.conftest import Run
from tests.fake_distributions import install


@hookimpl
def qframe_components() -> list[Component]:
    """What an imagined plugin `acme` offers."""
    targets = {
        "greet": f"{__name__}:greet",
        "tools": f"{__name__}:tools",
        "fails": f"{__name__}:fails",
        "no-command": f"{__name__}:not_a_command",
        "no-module": "no.such.module:run",
        "no-name": f"{__name__}:nothing_of_this_name",
    }
    return [Component("command", name, target, summary=f"summary of {name}") for name, target in targets.items()]


@click.command("another-name")
@click.option("--times", default=1)
def greet(times: int) -> int:
    """Say hello.

    This text is in the command's own help.
    """
    click.echo("hello " * times)
    return 3 if times > 5 else 0


@click.group()
def tools() -> None:
    """Two tools."""


@tools.command()
def saw() -> None:
    """Cut."""
    click.echo("sawn")


not_a_command = "a string"
raised: list[BaseException] = []


@click.command()
def fails() -> None:
    """Raise what a test wants."""
    raise raised[-1]


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry([Candidate("acme", "acme 1.0", __name__, lambda: sys.modules[__name__])])
    monkeypatch.setattr(plugin_commands, "load_registry", lambda: found)
    return found


# Called


@pytest.mark.usefixtures("acme")
def test_a_command_runs_under_the_name_that_the_plugin_declares_and_has_its_own_options(run: Run) -> None:
    outcome = run("greet", "--times", 2)
    assert (outcome.code, outcome.out.split(), outcome.err) == (0, ["hello", "hello"], "")
    shown = run("greet", "--help").out
    assert shown.startswith("Usage: qframe greet [OPTIONS]")
    assert "This text is in the command's own help." in shown


@pytest.mark.usefixtures("acme")
def test_the_number_that_a_command_returns_is_the_exit_code(run: Run) -> None:
    assert run("greet", "--times", 6).code == 3


@pytest.mark.usefixtures("acme")
def test_a_group_has_its_commands(run: Run) -> None:
    assert run("tools", "saw").out == "sawn\n"
    assert "Cut." in run("tools", "--help").out
    assert run("tools", "hammer").code == 2


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("row 3 is wrong", "Mend it."), 2),
        (DataError("row 3 is wrong", "Mend it."), 3),
        (WeightsError("row 3 is wrong", "Mend it."), 4),
        (QframeError("row 3 is wrong", "Mend it."), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_inside_a_command_is_its_message_and_its_exit_code(run: Run, error: QframeError, code: int) -> None:
    raised.append(error)
    outcome = run("fails")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err == "error: row 3 is wrong\nMend it.\n"


@pytest.mark.usefixtures("acme")
def test_an_unforeseen_error_inside_a_command_is_one_message(run: Run) -> None:
    raised.append(ZeroDivisionError("division by zero"))
    outcome = run("fails")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ZeroDivisionError: division by zero\n")
    assert "Traceback" not in outcome.err


# Listed


@pytest.mark.usefixtures("acme")
def test_help_lists_commands_by_what_plugins_declare_beside_those_of_the_core(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    lines = [line.split(maxsplit=1) for line in outcome.out.splitlines() if line.startswith("  ") and line.strip()]
    shown = dict(line for line in lines if len(line) == 2)
    assert shown["greet"] == "summary of greet"
    assert shown["no-module"] == "summary of no-module"
    assert shown["train"].startswith("Train a LoRA")


HELP_THEN_CALL = """
import sys
from qframe.cli import main
assert main(["--help"]) == 0
print("listed", "acme_command" in sys.modules)
assert main(["plugins", "list"]) == 0
print("listed", "acme_command" in sys.modules)
assert main(["hello"]) == 0
print("called", "acme_command" in sys.modules)
"""
DECLARES = """
from qframe import Component, hookimpl

@hookimpl
def qframe_components():
    return [Component("command", "{name}", "acme_command:run", summary="says hello")]
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter that sees the distributions in `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_a_command_is_imported_when_it_is_called_and_not_for_listing(tmp_path: Path) -> None:
    command = "import click\n@click.command()\ndef run():\n    click.echo('hello from acme')\n"
    install(tmp_path, "acme", {"acme": "acme_plugin"}, {"acme_plugin": DECLARES.format(name="hello")})
    (tmp_path / "acme_command.py").write_text(command)
    done = python(tmp_path, "-c", HELP_THEN_CALL)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("listed", "called"))] == [
        "listed False",
        "listed False",
        "called True",
    ]
    assert re.search(r"^  hello +says hello$", done.stdout, re.M)
    assert re.search(r"^command\n(  .*\n)*  hello +acme +says hello$", done.stdout, re.M)
    assert "hello from acme" in done.stdout


# Refused


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-command", f"{__name__}:not_a_command is no click command"),
        ("no-module", "no.such.module:run cannot be used (ModuleNotFoundError: No module named 'no')"),
        ("no-name", f"{__name__}:nothing_of_this_name cannot be used (AttributeError"),
    ],
)
def test_what_is_no_command_ends_with_7_and_names_the_plugin(run: Run, name: str, reason: str) -> None:
    outcome = run(name)
    assert outcome.code == 7
    assert outcome.err.startswith(f"error: plugin 'acme': {reason}")
    assert outcome.err.endswith("\nReinstall or update the plugin, or report this to its author.\n")
    assert (run("--help").code, run("plugins", "list").code) == (0, 0)


def test_a_plugin_cannot_replace_a_command_of_the_core(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"acme": "acme_plugin"}, {"acme_plugin": DECLARES.format(name="train")})
    listed = python(tmp_path, "-m", "qframe", "plugins", "list").stdout
    reason = "plugin 'acme' (acme 1.0): offers command 'train', which qframe itself has; the one of qframe is used."
    assert reason in listed.partition("\nbroken\n")[2]
    helped = python(tmp_path, "-m", "qframe", "train", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Train a LoRA" in helped.stdout
    assert f"warning: {reason}" in python(tmp_path, "-m", "qframe", "--help").stderr


def test_two_plugins_with_one_command_are_named(tmp_path: Path) -> None:
    for name in ("acme", "zeta"):
        install(tmp_path, name, {name: f"{name}_plugin"}, {f"{name}_plugin": DECLARES.format(name="hello")})
    listed = python(tmp_path, "-m", "qframe", "plugins", "list").stdout
    assert "plugin 'zeta' (zeta 1.0): offers command 'hello', which plugin 'acme' offers too" in listed


def test_an_unknown_command_may_be_one_of_a_broken_plugin(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"acme": "acme_that_is_not_there"}, {})
    done = python(tmp_path, "-m", "qframe", "trian")
    assert done.returncode == 2
    assert "warning: plugin 'acme' (acme 1.0): ModuleNotFoundError" in done.stderr
    assert "Did you mean 'train'?" in done.stderr


def test_the_names_that_plugins_may_not_take_are_the_commands_of_the_core() -> None:
    assert set(app.commands) == CORE_COMMANDS
