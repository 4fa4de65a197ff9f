"""Publishes files and folders: each appears complete or not at all, also if the process is killed or the disk is full.

A writer fills a draft, a temporary file or folder beside the target. It then syncs every file to disk, writes a
manifest of checksums (for folders), renames the draft to the target and syncs the parent folder. As long as the writer
runs, it holds a lock on its draft; a draft without a lock was left by a writer that was killed, and can be deleted.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qframe.errors import QframeError, ResourceError, WeightsError
from qframe.files.disk import disk_errors, make_folder
from qframe.files.locks import exclusive, try_lock

MANIFEST = "manifest.json"
"""The name of the file in a published folder that lists the sha256 and the size of each other file."""
_FORMAT = "qframe-manifest-1"
_PART = ".qframe-part"
_LARGEST_MANIFEST = 256 * 1024 * 1024
_UNLOCKABLE_AFTER = 24 * 3600.0
"""On a file system without locks, a draft that is older than this many seconds counts as abandoned."""
_HEADROOM = 1.2


def publish_folder(target: Path, write: Callable[[Path], Mapping[str, str] | None], *, expected_bytes: int = 0) -> None:
    """Publish a new folder with a manifest that holds the sha256 and the size of each of its files.

    If anything fails, nothing is left behind. A process that is killed leaves a hidden draft beside `target`, which the
    next call for a folder with the same parent deletes.

    Args:
        target: The folder to publish, which must not exist.
        write: Is called with an empty folder, the draft, and must write all files into it. It may return, by name, the
            sha256 of files that it hashed while it wrote them (`qframe.files.tensor_files` does); all others are read.
        expected_bytes: The number of bytes that `write` will need. The free space is checked before it is called.

    Raises:
        WeightsError: `target` exists.
        ResourceError: The disk is full, or cannot be written to.
        QframeError: `write` made a file named manifest.json, a link, or a special file.
    """
    _refuse_existing(target)
    parent = make_folder(target.parent)
    clear_leftovers(parent)
    require_space(parent, expected_bytes)
    with disk_errors(target), _draft(target, folder=True) as draft:
        known = write(draft) or {}
        if (draft / MANIFEST).exists():
            raise QframeError(f"{target}: {MANIFEST} is written by the publisher", "Give that file another name.")
        files = _files(draft)
        unseen = sorted(known.keys() - set(files))
        if unseen:  # written by another machine, whose files a network file system does not show here yet
            raise QframeError(
                f"{target}: {', '.join(unseen)} was written, but is not seen by the process that publishes the folder",
                "Put the run folder on a file system that shows every process the files of the others at once.",
            )
        mode = draft.stat().st_mode & 0o666  # what the umask allows; safetensors writes 0600
        listed: dict[str, dict[str, Any]] = {}
        for name in files:
            os.chmod(draft / name, mode)
            _sync(draft / name)
            digest = known[name] if name in known else file_digest(draft / name)
            listed[name] = {"sha256": digest, "size": (draft / name).stat().st_size}
        manifest = json.dumps({"format": _FORMAT, "files": listed}, indent=1, sort_keys=True)
        (draft / MANIFEST).write_text(manifest, encoding="utf-8")
        _sync(draft / MANIFEST)
        for inner in sorted((path for path in draft.rglob("*") if path.is_dir()), reverse=True):
            _sync(inner)
        _sync(draft)
        _refuse_existing(target)
        os.rename(draft, target)
        _sync(parent)


def verify_folder(folder: Path, digest: Callable[[Path], str] | None = None) -> list[str]:
    """Compare a published folder with its manifest, and return one line for each difference, or an empty list.

    Missing, changed and additional files are differences, and so is a manifest that is missing or cannot be read.

    Args:
        folder: The folder.
        digest: Returns the sha256 of a file; by default every file is read.
    """
    digest = digest or file_digest
    try:
        listed = _manifest(folder)
    except (OSError, ValueError) as error:
        return [f"{folder / MANIFEST}: {error.strerror if isinstance(error, OSError) else error}"]
    problems = []
    for name, entry in sorted(listed.items()):
        try:
            size = (folder / name).stat().st_size
            if size != entry["size"]:
                problems.append(f"{folder / name}: {size} bytes, published with {entry['size']}")
            elif digest(folder / name) != entry["sha256"]:
                problems.append(f"{folder / name}: content differs from what was published (sha256)")
        except OSError as error:
            problems.append(f"{folder / name}: {error.strerror}")
    try:
        extra = set(_files(folder)) - set(listed) - {MANIFEST}
    except QframeError as error:
        return [*problems, error.message]
    except OSError as error:  # the folder was deleted meanwhile
        return [*problems, f"{folder}: {error.strerror}"]
    return problems + [f"{folder / name}: not among the published files" for name in sorted(extra)]


def is_published(folder: Path) -> bool:
    """Whether the folder has a manifest that `publish_folder` wrote. The files that it lists are not checked."""
    try:
        _manifest(folder)
    except (OSError, ValueError):
        return False
    return True


def remove_published(folder: Path) -> None:
    """Delete a folder that `publish_folder` wrote. It is renamed first, so that no half-deleted folder keeps its name.

    Raises:
        WeightsError: `folder` is a link, or has no manifest of `publish_folder`.
    """
    if folder.is_symlink() or not is_published(folder):
        raise WeightsError(
            f"{folder}: not deleted, it has no {MANIFEST} of qframe",
            "Delete it by hand if it is not needed.",
        )
    draft = _part_name(folder)
    os.rename(folder, draft)
    _sync(folder.parent)
    shutil.rmtree(draft, ignore_errors=True)  # what stays is an abandoned draft like any other


def write_file(
    path: Path, data: bytes | bytearray | memoryview, *, check: Callable[[Path], None] | None = None
) -> None:
    """Write a file and sync it to disk. If there is a file at `path`, it is replaced in one step.

    Args:
        path: The file. Its folder is created if there is none.
        data: The content of the file.
        check: Is called with the path of the new file while that is still a draft. If `check` raises an error, the
            draft is deleted, and a file that was at `path` before stays as it was.

    Raises:
        ResourceError: The disk is full, or cannot be written to.
    """
    make_folder(path.parent)
    with disk_errors(path), _draft(path, folder=False) as draft:
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if check is not None:
            check(draft)
        os.replace(draft, path)
        _sync(path.parent)


def require_space(folder: Path, size: int, *, what: str = "") -> None:
    """Raise ResourceError if the disk of `folder` has less than 1.2 times `size` bytes free.

    Args:
        folder: The folder to write to.
        size: The bytes that will be written.
        what: What will be written, for the message.
    """
    if size <= 0:
        return
    free = shutil.disk_usage(folder).free
    if free < size * _HEADROOM:
        wanted = f"wanted for {what}" if what else "wanted"
        raise ResourceError(
            f"{folder}: {_human(free)} free, {_human(int(size * _HEADROOM))} {wanted} (1.2 x {_human(size)})",
            "Free some space, or write to another disk.",
        )


def clear_leftovers(folder: Path) -> list[Path]:
    """Delete the drafts in `folder` whose writers were killed, and return their paths.

    The drafts of writers that still run are left alone. On a file system without locks, a draft is deleted when it is
    older than a day.
    """
    removed = []
    for path in sorted(folder.glob(f".*{_PART}")):
        # Another process may delete the same draft, and a draft that cannot be deleted does no harm.
        with contextlib.suppress(OSError), _abandoned(path) as abandoned:
            if abandoned:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed.append(path)
    return removed


_LOCK = ".qframe-lock"
_PROBED = 0.2
"""How many seconds a run waits for the lock of its folder, which `is_written` may hold for a moment."""


def is_written(folder: Path) -> bool:
    """Whether a training run writes into `folder` now, on this machine or another that shares the file system."""
    try:
        handle = os.open(folder / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        taken = try_lock(handle, shared=True)
    finally:
        os.close(handle)
    return (folder / f"{_LOCK}.held").exists() if taken is None else not taken


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """A context in which no other training run writes into `folder`, which is created if there is none.

    Raises:
        WeightsError: Another run writes into `folder`; the message names its process and its machine.
    """
    make_folder(folder, "--output")
    owner = folder / ".qframe-owner.json"

    def busy() -> WeightsError:
        return WeightsError(
            f"{folder}: another run is writing here{_owner(owner)}",
            "Wait until it ends, or give this run another output folder.",
        )

    with exclusive(folder / _LOCK, busy, timeout=_PROBED):
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_file(owner, json.dumps(about).encode())
            yield
        finally:
            with contextlib.suppress(OSError):  # an error of the run is the one to show
                owner.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise WeightsError(f"{target}: exists already, and a published folder is never rewritten")


def _part_name(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(6)}{_PART}"


@contextlib.contextmanager
def _draft(target: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a new draft next to `target`, locked by this process; afterwards it is deleted unless it was renamed."""
    while True:
        draft = _part_name(target)
        if folder:
            draft.mkdir()
            handle = os.open(draft, os.O_RDONLY)
        else:
            handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if try_lock(handle) is not False and _same(handle, draft):
            break
        os.close(handle)  # another process deleted the draft before it was locked
    try:
        yield draft
    finally:
        # After a rename the draft's name is gone, and nothing is removed.
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # the error that led here is the one to show
                draft.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Yield whether no living process holds the draft at `path`. Inside, the draft is locked."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        locked = try_lock(handle)
        old = time.time() - os.fstat(handle).st_mtime > _UNLOCKABLE_AFTER
        yield old if locked is None else locked and _same(handle, path)
    finally:
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> list[str]:
    """Return the relative POSIX names of all files below `folder`, sorted. QframeError for a link or a special file."""
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise QframeError(f"{path}: a published folder holds plain files and folders only")
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the files that a manifest lists. OSError if it cannot be read, ValueError if it is not one of qframe."""
    path = folder / MANIFEST
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise ValueError("too large to be a manifest")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply to be a manifest") from error
    files = value.get("files") if isinstance(value, dict) and value.get("format") == _FORMAT else None
    if not isinstance(files, dict):
        raise ValueError(f"not a manifest of qframe (format {_FORMAT})")
    for name, entry in files.items():
        pure = PurePosixPath(os.fsdecode(os.fsencode(name)))  # UnicodeEncodeError, a ValueError: no name of a file
        if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
            raise ValueError(f"names a file outside the folder: {name!r}")
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int) or "sha256" not in entry:
            raise ValueError(f"entry of {name!r} lacks its size or sha256")
    return files


def _owner(path: Path) -> str:
    try:
        about = json.loads(path.read_bytes())
        return f" (process {about['pid']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _human(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size //= 1000
    return f"{size} GB"
