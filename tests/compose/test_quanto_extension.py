"""The code that optimum-quanto compiles: checked before anything is loaded, and never waited for without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

import qframe
from qframe.compose import compose
from qframe.errors import ConfigError
from qframe.files.locks import FileLock
from qframe.interfaces import Loadable
from qframe.progress import SilentProgress, Stage
from qframe_quanto import extension
from qframe_quanto.extension import BATON, compiled, prepare_extension
from tests.qwen import tiny

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for who has a file open")


class Told(SilentProgress):
    """Remembers what it was told, and sets an event at the first note."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.noted = threading.Event()

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        self.lines.append(name)
        yield self

    def note(self, text: str) -> None:
        self.lines.append(text)
        self.noted.set()


class Builder:
    """Stands for an extension of optimum-quanto: compiling takes torch's lock file, as torch does, and some time."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.build_directory = str(folder / "build")
        self.error = error
        self.built = 0
        self._lib: Any = None

    @property
    def lib(self) -> Any:
        baton = FileBaton(str(Path(self.build_directory) / BATON))
        assert baton.try_acquire(), "torch would wait for ever"
        try:
            self.built += 1
            if self.error is not None:
                raise self.error
            self._lib = object()
        finally:
            baton.release()
        return self._lib


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder(tmp_path)
    (tmp_path / "build").mkdir()
    monkeypatch.setattr(extension, "get_extension", lambda name: made)
    monkeypatch.setattr(extension, "_POLL_SECONDS", 0.01)
    return made


@pytest.mark.parametrize(
    ("weights", "device", "names"),
    [("qint8", "cpu", []), ("qint4", "cpu", ["quanto_cpp"]), ("qfloat8", "cpu", []),
     ("qint8", "cuda", []), ("qint4", "cuda", ["quanto_cpp", "quanto_cuda"]), ("qfloat8", "cuda", ["quanto_cuda"])],
)  # fmt: skip
def test_only_what_the_weights_need_is_compiled(
    monkeypatch: pytest.MonkeyPatch, weights: str, device: str, names: list[str]
) -> None:
    monkeypatch.setattr(extension, "is_extension_available", lambda name: True)
    assert compiled(weights, device) == names


@needs_proc
def test_a_lock_file_that_an_interruption_left_behind_is_cleared(builder: Builder) -> None:
    """However young it is: no process has it open."""
    baton, told = Path(builder.build_directory) / BATON, Told()
    baton.touch()
    prepare_extension("quanto_cpp", told)
    assert builder.built == 1
    assert not baton.exists()
    assert "interrupted" in told.lines[0]
    prepare_extension("quanto_cpp", told)
    assert builder.built == 1  # it is loaded


@needs_proc
def test_a_process_that_was_killed_while_it_compiled_leaves_nothing_to_wait_for(builder: Builder) -> None:
    code = "import sys, time; from torch.utils.file_baton import FileBaton; b = FileBaton(sys.argv[1]); "
    code += "print(b.try_acquire(), flush=True); time.sleep(600)"
    baton = Path(builder.build_directory) / BATON
    with subprocess.Popen([sys.executable, "-c", code, str(baton)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert extension._held(baton) is True
        process.kill()
        process.wait()
    assert extension._held(baton) is False
    prepare_extension("quanto_cpp", Told())
    assert builder.built == 1


@needs_proc
def test_a_program_that_compiles_is_waited_for_and_named(builder: Builder) -> None:
    """A slow builder that knows nothing of qframe: it holds torch's lock file open as long as it works."""
    baton, told = FileBaton(str(Path(builder.build_directory) / BATON)), Told()
    assert baton.try_acquire()
    waiting = threading.Thread(target=prepare_extension, args=("quanto_cpp", told))
    waiting.start()
    assert told.noted.wait(30)
    assert "waiting for another program" in told.lines[0]
    assert builder.built == 0
    baton.release()
    waiting.join(30)
    assert builder.built == 1
    assert told.lines[1:] == ["compiling quanto_cpp for quantised weights"]


def test_another_process_of_qframe_is_waited_for_and_named(builder: Builder) -> None:
    """It has the lock that the system releases when it ends."""
    folder, told = Path(builder.build_directory), Told()
    lock = FileLock(folder.with_name(f".{folder.name}.qframe-lock"))
    assert lock.take()
    waiting = threading.Thread(target=prepare_extension, args=("quanto_cpp", told))
    waiting.start()
    assert told.noted.wait(30)
    assert told.lines == ["waiting for another process that compiles quanto_cpp"]
    assert builder.built == 0
    lock.release()
    waiting.join(30)
    assert builder.built == 1


@needs_proc
def test_a_program_of_another_container_is_seen_while_it_lives_and_not_after(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is not in /proc. The kernel knows of it, unless it keeps no count of those who read."""
    baton = Path(builder.build_directory) / BATON
    held = FileBaton(str(baton))
    assert held.try_acquire()
    monkeypatch.setattr(extension, "_PROCESSES", tmp_path / "empty")
    if extension._opened(baton) is None:
        pytest.skip("this kernel or file system does not tell")
    assert extension._held(baton) is True
    os.close(held.fd)  # as if it was killed
    assert extension._held(baton) is False


@pytest.mark.parametrize("reason", ["network", "container"])
def test_where_nobody_can_tell_it_is_said_and_only_an_old_lock_file_is_cleared(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Its holder may be on another machine, or in another container on a kernel that does not tell."""
    baton, told = Path(builder.build_directory) / BATON, Told()
    baton.touch()
    if reason == "network":
        monkeypatch.setattr(extension, "network_type", lambda path: "nfs4")
    else:
        monkeypatch.setattr(extension, "_opened", lambda file: None)
        monkeypatch.setattr(extension, "_sees_all_processes", lambda: False)
    waiting = threading.Thread(target=prepare_extension, args=("quanto_cpp", told))
    waiting.start()
    assert told.noted.wait(30)
    assert "cannot be seen from here" in told.lines[0]
    assert "Delete it if nothing compiles" in told.lines[0]
    assert builder.built == 0
    long_ago = time.time() - 2 * extension._ABANDONED_AFTER
    os.utime(baton, (long_ago, long_ago))
    waiting.join(30)
    assert builder.built == 1
    assert told.lines[1].startswith(f"removing {baton}: it is older than an hour")


def test_everything_that_is_missing_is_named_at_once(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError) as caught:
        prepare_extension("quanto_cuda", Told())
    for part in ("C++ compiler", "ninja", "CUDA toolkit", f"write into {builder.build_directory}"):
        assert part in caught.value.message
    assert "qint8" in str(caught.value.hint)
    assert builder.built == 0


def test_a_compiler_that_fails_is_an_error_with_its_words(builder: Builder) -> None:
    builder.error = RuntimeError("Error building extension 'quanto_cpp': no such header")
    with pytest.raises(ConfigError, match="no such header"):
        prepare_extension("quanto_cpp", Told())
    builder.error = None
    prepare_extension("quanto_cpp", Told())  # the lock was released


def test_a_machine_without_a_compiler_is_refused_before_anything_is_loaded(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is loaded first: the denoiser may be loaded hours after the encoder."""
    model = tiny.tiny_qwen_model(tmp_path / "model").folder
    overrides = ["device=cpu", "denoiser.quantise.use=quanto", "denoiser.quantise.options.weights=qint4"]
    composition = compose(qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=overrides))

    def load(*_: Any, **__: Any) -> Loadable:
        raise AssertionError("something was loaded")

    for role in ("encoder", "denoiser", "codec", "schedule"):
        monkeypatch.setattr(composition.classes[role], "load", load)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        composition.load("encoder", "codec")
    assert torch.device("cpu") == composition.device("denoiser")
