"""Errors become one message and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from qframe.cli.app import app
from qframe.errors import (
    CacheError,
    CompositionError,
    ConfigError,
    DataError,
    NumericsError,
    PluginError,
    QframeError,
    ResourceError,
    UntrustedError,
    WeightsError,
)
from tests.cli.conftest import Run
from tests.fake_distributions import install

Boom = Callable[[Callable[[], object]], None]


@pytest.fixture
def boom() -> Iterator[Boom]:
    """`boom(f)` makes `qframe boom` call f."""

    def set_up(action: Callable[[], object]) -> None:
        app.add_command(click.Command("boom", callback=lambda: action()), "boom")

    yield set_up
    app.commands.pop("boom", None)


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QframeError("m"), 1),
        (ConfigError("m"), 2),
        (CompositionError("m"), 2),
        (DataError("m"), 3),
        (CacheError("m"), 3),
        (WeightsError("m"), 4),
        (NumericsError("m"), 5),
        (ResourceError("m"), 6),
        (PluginError("m"), 7),
        (UntrustedError("m"), 7),
        (MemoryError(), 6),
        (OSError(errno.ENOSPC, "No space left on device"), 6),
        (KeyError("m"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_error_has_its_exit_code_and_no_traceback(run: Run, boom: Boom, error: BaseException, code: int) -> None:
    boom(raising(error))
    outcome = run("boom")
    assert outcome.code == code
    assert outcome.out == ""
    assert outcome.err
    assert "Traceback" not in outcome.err


def test_message_and_hint_are_on_stderr(run: Run, boom: Boom) -> None:
    boom(raising(DataError("row 3: no picture", "Add one.")))
    assert run("boom").err == "error: row 3: no picture\nAdd one.\n"


def test_torch_out_of_memory_names_remedies(run: Run, boom: Boom) -> None:
    import torch

    boom(raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")))
    outcome = run("boom")
    assert outcome.code == 6
    assert "Tried to allocate" in outcome.err
    assert "train.batch_size=1" in outcome.err


@pytest.mark.parametrize("arguments", [("--debug", "boom"), ("boom", "--debug")])
def test_debug_shows_the_traceback(run: Run, boom: Boom, arguments: tuple[str, ...]) -> None:
    boom(raising(ConfigError("m")))
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.endswith("error: m\n")


def test_unforeseen_error_points_to_debug(run: Run, boom: Boom) -> None:
    boom(raising(ZeroDivisionError("division by zero")))
    outcome = run("boom")
    assert "ZeroDivisionError: division by zero" in outcome.err
    assert "--debug" in outcome.err


def test_sigterm_unwinds_and_ends_with_143(run: Run, boom: Boom) -> None:
    unwound = []

    def action() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    boom(action)
    assert run("boom").code == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--famly", "x"], "Did you mean '--family'?"),
        (["plugins", "lst"], "Did you mean 'list'?"),
        (["sample", "--output", "a.png"], "Missing option '--prompt'"),
    ],
)
def test_wrong_usage_ends_with_2_and_the_nearest_name(run: Run, arguments: list[str], suggestion: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert suggestion in outcome.err


def test_version_is_that_of_the_distribution(run: Run) -> None:
    from qframe import __version__

    assert run("--version").out == f"qframe, version {__version__}\n"


@pytest.mark.parametrize(
    "command", [[], *([name] for name in app.list_commands(click.Context(app))), ["cache", "build"], ["config", "show"]]
)
def test_every_command_has_help(run: Run, command: list[str]) -> None:
    outcome = run(*command, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith("Usage: qframe")


def test_closed_pipe_ends_quietly() -> None:
    script = f"{sys.executable} -m qframe plugins list | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_broken_plugin_is_a_warning_and_the_command_works(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"acme": "acme_that_is_not_there"}, {})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "qframe", "config", "show", "--family", "qwen-image"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0
    assert "warning: plugin 'acme' (acme 1.0): ModuleNotFoundError" in done.stderr
    assert "train.max_steps" in done.stdout


def test_reference_names_every_command_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")

    def missing(command: click.Command, name: str) -> Iterator[str]:
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not any(f"`{option}" in page for option in parameter.opts):
                yield f"{name} {parameter.opts[0]}"
        context = click.Context(command)
        for inner in command.list_commands(context) if isinstance(command, click.Group) else ():
            if f"{name} {inner}" not in page:
                yield f"{name} {inner}"
            found = command.get_command(context, inner)
            assert found is not None
            yield from missing(found, f"{name} {inner}")

    assert list(missing(app, "qframe")) == []
