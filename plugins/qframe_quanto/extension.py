"""Compiles the C++ and CUDA code of optimum-quanto before anything is loaded, where nobody has to wait without a word.

optimum-quanto compiles when 4-bit weights are first used, into its own folder, under a lock file of torch (`FileBaton`)
that is there as long as somebody compiles. If that process is killed, the file stays, and every later process waits for
it for ever. Here a process first takes a lock of its own, which the system releases when the process ends, and which
excludes the processes of other containers that share the folder, too. While it has that lock, a lock file of torch that
no process has open was left behind, and is deleted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from optimum.quanto.library.extensions import get_extension, is_extension_available
from torch.utils import cpp_extension

from qframe.errors import ConfigError
from qframe.files.filesystems import network_type
from qframe.files.locks import FileLock
from qframe.progress import Progress

BATON = "lock"
"""The name of torch's lock file in a folder that it compiles in: `_jit_compile` in torch's cpp_extension.py."""
_POLL_SECONDS = 0.2
_ABANDONED_AFTER = 3600.0
"""Where it cannot be seen who has a lock file open, one older than this many seconds counts as left behind."""
_PROCESSES = Path("/proc")
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in Linux' include/linux/proc_ns.h


def compiled(weights: str, device: str) -> list[str]:
    """Return the names of the extensions that optimum-quanto compiles for weights of a format on a kind of device."""
    needed = ["quanto_cpp"] if weights == "qint4" else []
    if device == "cuda" and weights in ("qint4", "qfloat8"):
        needed.append("quanto_cuda")
    return [name for name in needed if is_extension_available(name)]


def prepare_extension(name: str, progress: Progress) -> None:
    """Compile an extension of optimum-quanto unless it is compiled, and load it into this process.

    Args:
        name: The name of the extension.
        progress: Is told that this process compiles, or that it waits for another one that does.

    Raises:
        ConfigError: There is no compiler, or the folder cannot be written, or compiling failed.
    """
    extension: Any = get_extension(name)
    if extension._lib is not None:
        return
    folder = Path(extension.build_directory)
    _check(name, folder)
    folder.mkdir(exist_ok=True)
    lock = _own_lock(folder, progress, name)
    try:
        _await_baton(folder / BATON, progress, name)
        # torch looks for changes at every start, so the stage is there, and short, where nothing is compiled.
        with progress.stage(f"compiling {name} for quantised weights", 1) as stage:
            _ = extension.lib
            stage.advance(1)
    except (RuntimeError, OSError, ImportError) as error:
        raise ConfigError(
            f"quantise: the code of optimum-quanto ({name}) cannot be compiled here: {str(error).strip()[-2000:]}",
            "Mend the compiler, or set quantise.options.weights to 'qint8', which needs none.",
        ) from error
    finally:
        lock.release()


def _check(name: str, folder: Path) -> None:
    """Check what compiling needs. Raises ConfigError, which names everything that is missing."""
    missing = []
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        missing.append(f"the C++ compiler {compiler!r} (a package of the system, often g++; or name one in CXX)")
    if not cpp_extension.is_ninja_available():
        missing.append("ninja (pip install ninja)")
    if name == "quanto_cuda" and cpp_extension.CUDA_HOME is None:
        missing.append("the CUDA toolkit (nvcc; or name its folder in CUDA_HOME)")
    place = folder if folder.exists() else folder.parent
    if not os.access(place, os.W_OK):
        missing.append(f"the right to write into {place}")
    if missing:
        raise ConfigError(
            f"quantise: optimum-quanto compiles code for these weights, and this machine lacks {'; '.join(missing)}",
            "Install that, or set quantise.options.weights to 'qint8', which needs none of it.",
        )


def _own_lock(folder: Path, progress: Progress, name: str) -> FileLock:
    """Take the lock of the folder that qframe's processes compile in, and wait for one that has it."""
    lock = FileLock(folder.with_name(f".{folder.name}.qframe-lock"))
    if lock.take() is False:
        progress.note(f"waiting for another process that compiles {name}")
        while lock.take(timeout=3600.0) is False:
            progress.note(f"still waiting for another process that compiles {name}")
    return lock


def _await_baton(baton: Path, progress: Progress, name: str) -> None:
    """Wait until torch's lock file is gone, and delete it if its process is gone. Say what is waited for or deleted."""
    told: set[str] = set()
    while baton.exists():
        held = _held(baton)
        old = time.time() - _made(baton) > _ABANDONED_AFTER
        if held is False:
            text = f"removing {baton}, which an interrupted compilation left behind"
        elif held:
            text = f"waiting for another program that compiles {name}: it holds {baton}"
        elif old:
            text = f"removing {baton}: it is older than an hour, and who made it cannot be seen from here"
        else:
            text = (
                f"waiting for {baton}: whether its program still compiles {name} cannot be seen from here, as it may "
                "run in another container, on another machine or for another user. An hour after it was made the file "
                "counts as left behind. Delete it if nothing compiles"
            )
        if text not in told:
            progress.note(text)
            told.add(text)
        if held is False or (held is None and old):
            baton.unlink(missing_ok=True)
            return
        time.sleep(_POLL_SECONDS)


def _made(baton: Path) -> float:
    try:
        return baton.stat().st_mtime
    except FileNotFoundError:  # it is gone, and not old
        return time.time()


def _held(baton: Path) -> bool | None:
    """Whether a living process holds torch's lock file, which it keeps open until it deletes it.

    None if nobody can tell: processes of other machines are not seen, and those of other containers only by the kernel.
    """
    try:
        about = baton.stat()
    except FileNotFoundError:
        return True  # it was deleted by its holder just now
    if network_type(baton) is not None or not sys.platform.startswith("linux"):
        return None
    seen = {_has_open(process, about) for process in _PROCESSES.glob("[0-9]*")}
    if True in seen:
        return True
    if (opened := _opened(baton)) is not None:
        return opened
    return None if None in seen or not _sees_all_processes() else False


def _opened(file: Path) -> bool | None:
    """Whether any process of this machine has a file open, in whichever container. None if the kernel does not tell.

    The kernel grants a write lease only on a file that nobody else has open (fcntl(2), F_SETLEASE). Some kernels do not
    count those who only read, as torch does. So it is first asked about a file that is certainly open.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent) as probe, open(probe.name, "rb"):
            if _leased(Path(probe.name)):
                return None
        return not _leased(file)
    except OSError:  # no leases on this file system, or the file belongs to another user
        return None


def _leased(file: Path) -> bool:
    """Take a write lease on a file and give it up again; False if another process has the file open."""
    handle = os.open(file, os.O_RDONLY)
    try:
        # If somebody opens the file meanwhile, the kernel sends a signal; this one is ignored by default.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _sees_all_processes() -> bool:
    """Whether this process sees those of all containers: it is in the first namespace of processes of the machine."""
    try:
        return os.readlink("/proc/self/ns/pid") == _FIRST_NAMESPACE
    except OSError:
        return False


def _has_open(process: Path, about: os.stat_result) -> bool | None:
    """Whether a process has a file open; None for a Python process that this user may not look into."""
    try:
        for handle in (process / "fd").iterdir():
            # A look at the name first: the files of other programs may lie where a look at the file itself hangs.
            with suppress(FileNotFoundError):
                if Path(os.readlink(handle)).name == BATON and os.path.samestat(handle.stat(), about):
                    return True
    except PermissionError:
        with suppress(OSError):
            return None if b"python" in (process / "cmdline").read_bytes().partition(b"\0")[0] else False
    except OSError:  # it has ended
        pass
    return False
