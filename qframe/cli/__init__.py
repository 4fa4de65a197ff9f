"""The command line: `main` runs one command, turns every error into one message, and returns an exit code.

torch is imported inside the commands that compute, never by `--help` or by what only lists.
"""

from __future__ import annotations

import errno
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

_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qframe ARGV` and return its exit code; see docs/reference/exit-codes.md."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return 1
    # The last resort of a program: whatever it is, the user reads one message, and with --debug the rest.
    except Exception as error:  # noqa: BLE001
        if debug:
            traceback.print_exc()
        return _report(error, debug)


def _report(error: Exception, debug: bool) -> int:
    """Say what happened on stderr, and return the exit code it means."""
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
    if isinstance(error, OSError) and error.errno in _FULL:
        click.echo(f"error: the disk is full ({error})\nFree some space, then go on with --resume.", err=True)
        return 6
    click.echo(f"error: {type(error).__name__}: {error}", err=True)
    if not debug:
        click.echo("This was not foreseen. The same command with --debug shows where it happened.", err=True)
    return 1


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # if nothing imported it, nothing of it was raised
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


@contextmanager
def _terminated() -> Iterator[None]:
    """Inside, SIGTERM unwinds the program as Ctrl-C does, and ends it with 143."""

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
