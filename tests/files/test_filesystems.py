"""Which folders lie on a file system that other machines may have mounted too."""

from __future__ import annotations

from pathlib import Path

import pytest

from qframe.files import filesystems
from qframe.files.filesystems import network_type


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nfs", True), ("nfs4", True), ("cifs", True), ("lustre", True), ("fuse.sshfs", True), ("beegfs", True),
     ("ext4", False), ("overlay", False), ("tmpfs", False), ("fuse.ext4", False), ("xfs", False)],
)  # fmt: skip
def test_the_nearest_mount_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: bool) -> None:
    """A folder that does not exist yet lies where its nearest parent does; a blank in a path is written as an octal."""
    shared = tmp_path / "on the net"
    (shared / "local").mkdir(parents=True)
    mounts = tmp_path / "mounts"
    escaped = str(shared).replace(" ", "\\040")
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/x {escaped} {kind} rw 0 0\n/dev/sdb {escaped}/local ext4 rw 0 0\n"
    )
    monkeypatch.setattr(filesystems, "_MOUNTS", mounts)
    wanted = kind if network else None
    assert network_type(shared) == network_type(shared / "new" / "cache") == wanted
    assert network_type(shared / "local" / "cache") is None
    assert network_type(tmp_path) is None


def test_the_upper_one_of_two_mounts_in_one_place_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a {tmp_path} ext4 rw 0 0\nb {tmp_path} nfs4 rw 0 0\n\nbroken\n")
    monkeypatch.setattr(filesystems, "_MOUNTS", mounts)
    assert network_type(tmp_path) == "nfs4"


def test_a_system_without_a_list_of_mounts_has_no_network_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_MOUNTS", tmp_path / "missing")
    assert network_type(tmp_path) is None
