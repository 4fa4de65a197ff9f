"""One lock for all: alone or shared, with a wait, freed by whoever ends, and what holds where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qframe.files.locks import FileLock, exclusive, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from qframe.files.locks import FileLock

lock = FileLock(Path(sys.argv[1]))
print(lock.take(shared=sys.argv[2] == "shared"), flush=True)
time.sleep(60)
"""


class Busy(Exception):
    """What the tests raise for a lock that is held."""


def held_by_another_process(path: Path, mode: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), mode], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"
    return process


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize(("mode", "together"), [("alone", False), ("shared", True)])
def test_only_shared_locks_are_held_together_and_a_killed_holder_frees_them(
    tmp_path: Path, mode: str, together: bool
) -> None:
    path = tmp_path / "lock"
    process = held_by_another_process(path, mode)
    try:
        assert FileLock(path).take(shared=True) is together
        assert FileLock(path).take() is False
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert FileLock(path).take() is True
    assert path.exists(), "a lock file is never deleted"


def test_who_waits_says_so_once_and_gets_the_lock_when_it_is_released(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    holder, waiter = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert holder.take()
    began = time.monotonic()
    assert waiter.take(timeout=0.15) is False
    assert 0.15 <= time.monotonic() - began < 5
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'lock'}: waiting for another process that holds this lock"
    ]
    threading.Timer(0.1, holder.release).start()
    assert waiter.take(timeout=30) is True


def test_a_forked_process_keeps_a_lock_that_was_closed_but_not_one_that_was_released(tmp_path: Path) -> None:
    for end, free in ((FileLock.close, False), (FileLock.release, True)):
        lock = FileLock(tmp_path / end.__name__)
        assert lock.take()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        try:
            end(lock)
            assert FileLock(tmp_path / end.__name__).take() is free
        finally:
            os.close(writer)
            os.close(reader)
            os.waitpid(child, 0)


def test_threads_exclude_one_another_too(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with exclusive(tmp_path / "lock", Busy, timeout=30):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_held_lock_is_refused_with_the_callers_error_and_free_afterwards(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", Busy), pytest.raises(Busy), exclusive(tmp_path / "lock", Busy):
        pass
    with exclusive(tmp_path / "lock", Busy):
        pass


def test_without_locks_nothing_is_told_of_others_but_one_alone_is_still_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_locks(monkeypatch)
    with (tmp_path / "lock").open("wb") as stream:
        assert try_lock(stream.fileno()) is None
    assert FileLock(tmp_path / "lock").take(shared=True, timeout=5) is None
    with exclusive(tmp_path / "lock", Busy), pytest.raises(Busy), exclusive(tmp_path / "lock", Busy):
        pass
    with exclusive(tmp_path / "lock", Busy):
        pass
