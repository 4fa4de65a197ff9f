"""The command line: `main` runs one command, prints one message for any error, and returns an exit code.

Only commands that compute import torch, and they do so when they run. `--help` and commands that list things do not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from qframe.cli.app import app
from qframe.errors import QframeError
from qframe.files.disk import disk_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; docs/reference/exit-codes.md lists the codes.

    Args:
        argv: The arguments after `qframe`; None means those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _terminated():
            result = app.main(arguments, prog_name="qframe", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports the pipe again
        return 1
    # Whatever error it is, the user gets one message; --debug adds the traceback.
    except Exception as error:  # noqa: BLE001
        if debug:
            traceback.print_exc()
        return report(error, debug)


def report(error: Exception, debug: bool) -> int:
    """Print what happened on stderr, and return the exit code of the error."""
    if isinstance(error, QframeError):
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        return error.exit_code
    if _out_of_memory(error):
        click.echo(
            f"error: out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__})", err=True
        )
        click.echo(
            "In this order: train.batch_size=1 with train.gradient_accumulation, train.gradient_checkpointing=true, "
            "dtype=bfloat16, smaller pictures.",
            err=True,
        )
        return 6
    if isinstance(error, OSError) and (known := disk_error(error)) is not None:
        return report(known, debug)
    click.echo(f"error: {type(error).__name__}: {error}", err=True)
    if not debug:
        click.echo("This was not foreseen. The same command with --debug shows where it happened.", err=True)
    return 1


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # if torch was not imported, the error is not one of torch
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


@contextmanager
def _terminated() -> Iterator[None]:
    """Within this context, SIGTERM raises SystemExit with code 143, so that the program cleans up as after Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        click.echo("terminated", err=True)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
