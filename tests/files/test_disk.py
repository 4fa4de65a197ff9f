"""What a disk reports becomes one error that names the place, the reason and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qframe.errors import ResourceError
from qframe.files import storage
from qframe.files.disk import disk_error, disk_errors, make_folder
from tests.privileges import ordinary_user, read_only

REASONS = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EROFS: "mounted read-only: write to another place (--output)",
    errno.EACCES: "Write to another place (--output)",
    errno.EIO: "the system's log",
    errno.ESTALE: "not connected",
    errno.ENOTDIR: "a file where a folder is needed: name another place (--output)",
    errno.EMFILE: "ulimit -n",
}


@pytest.mark.parametrize("number", REASONS)
def test_an_error_of_the_disk_names_the_place_and_what_to_do(number: int) -> None:
    with pytest.raises(ResourceError) as caught, disk_errors(Path("/data/run"), "--output"):
        raise OSError(number, os.strerror(number), "/data/.run.qframe-part")
    assert str(caught.value).startswith("/data/run: cannot be written")
    assert os.strerror(number) in caught.value.message
    assert REASONS[number] in str(caught.value.hint)


def test_an_error_outside_of_any_writer_names_its_own_file() -> None:
    found = disk_error(OSError(errno.EIO, "Input/output error", "/data/x.png"))
    assert found is not None
    assert found.message == "/data/x.png: cannot be used (Input/output error)"
    assert disk_error(OSError(errno.EIO, "Input/output error")) is None, "it names no file"
    assert disk_error(OSError(errno.ENOENT, "No such file", "/data/x.png")) is None, "a bug, or a missing input"


def test_safetensors_says_the_same(tmp_path: Path) -> None:
    target = read_only(tmp_path) / "x.safetensors"
    refused = pytest.raises(ResourceError, match=r"x\.safetensors: cannot be written .*Permission denied")
    with ordinary_user(), refused, disk_errors(target):
        save_file({"x": torch.zeros(2)}, target)


@pytest.mark.parametrize(
    "write",
    [
        make_folder,
        lambda target: storage.write_file(target, b""),
        lambda target: storage.publish_folder(target, lambda folder: None),
    ],
    ids=["make_folder", "write_file", "publish_folder"],
)
def test_a_place_under_a_file_is_named(write: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a file where a folder is needed"):
        write(tmp_path / "file" / "below" / "x")


def test_the_first_error_is_the_one_that_is_shown(tmp_path: Path) -> None:
    """The folder becomes read-only while a run writes into it: leaving it fails too, and says nothing."""
    with (  # noqa: PT012 - the error comes from inside
        ordinary_user(),
        pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written"),
        storage.lock_folder(tmp_path / "run"),
    ):
        read_only(tmp_path / "run")
        storage.write_file(tmp_path / "run" / "metrics.jsonl", b"")
