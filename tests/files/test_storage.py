"""Publishing: whole or not at all, verified, cleaned up after the dead only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qframe.errors import QframeError, ResourceError, WeightsError
from qframe.files import storage
from qframe.files.disk import disk_errors


def fill(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"alpha")
    (folder / "inner").mkdir()
    save_file({"x": torch.arange(10)}, folder / "inner" / "b.safetensors")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    target = tmp_path / "step-1"
    storage.publish_folder(target, fill)
    return target


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_published_folder_verifies_and_leaves_no_draft(published: Path) -> None:
    assert storage.verify_folder(published) == []
    assert storage.is_published(published)
    assert hidden(published.parent) == []


def test_the_manifest_lists_size_and_sha256_of_every_file(published: Path) -> None:
    files = json.loads((published / "manifest.json").read_text())["files"]
    assert sorted(files) == ["a.bin", "inner/b.safetensors"]
    assert files["a.bin"]["size"] == 5
    assert files["a.bin"]["sha256"] == storage.file_digest(published / "a.bin")


def test_published_files_can_be_read_by_whom_the_umask_allows(published: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in (published / "a.bin", published / "inner" / "b.safetensors")}
    assert len(modes) == 1, "safetensors writes 0600, whatever the umask"


def test_every_file_and_folder_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("RENAME"), rename(a, b)))
    storage.publish_folder(tmp_path / "out", fill)
    before, after = events[: events.index("RENAME")], events[events.index("RENAME") + 1 :]
    assert {"a.bin", "b.safetensors", "inner", "manifest.json"} <= set(before)
    assert before.index("manifest.json") > max(before.index("a.bin"), before.index("b.safetensors"))
    assert after == [tmp_path.name]


def test_an_existing_target_is_refused_and_untouched(published: Path) -> None:
    with pytest.raises(WeightsError, match="exists already"):
        storage.publish_folder(published, fill)
    assert storage.verify_folder(published) == []


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.publish_folder(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_written_and_is_not_seen_is_refused(tmp_path: Path) -> None:
    """As where another machine wrote it, and a network file system does not show it here yet."""

    def write(folder: Path) -> dict[str, str]:
        fill(folder)
        return {"elsewhere.safetensors": "0" * 64}

    with pytest.raises(QframeError, match=r"elsewhere\.safetensors was written, but is not seen"):
        storage.publish_folder(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []


def _limit(size: int) -> str:
    return (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    )


@pytest.mark.parametrize(
    "write",
    [
        "(folder / 'big').write_bytes(bytes(200_000))",
        "save_file({'x': torch.zeros(50_000)}, folder / 'big')",
    ],
    ids=["file", "safetensors"],
)
def test_a_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path: Path, write: str) -> None:
    code = (
        _limit(100_000)
        + f"""
import torch
from pathlib import Path
from safetensors.torch import save_file
from qframe.errors import ResourceError
from qframe.files.storage import publish_folder, write_file

def write(folder):
    {write}

root = Path({str(tmp_path)!r})
for act in (lambda: publish_folder(root / "out", write), lambda: write_file(root / "file", bytes(200_000))):
    try:
        act()
    except ResourceError as error:
        assert error.exit_code == 6 and str(root) in error.message, error
    else:
        raise SystemExit("no error")
"""
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_the_device_that_is_always_full_is_a_resource_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="No space left"),
        disk_errors(tmp_path),
        open("/dev/full", "wb", buffering=0) as stream,
    ):
        stream.write(b"x")


def test_other_errors_of_the_disk_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "missing").read_bytes()


def test_too_little_free_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1\.2 x"):
        storage.publish_folder(tmp_path / "out", fill, expected_bytes=10**18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "extra", "manifest"])
def test_damage_is_found_and_named(published: Path, damage: str) -> None:
    file = published / "inner" / "b.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-3] ^= 4
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-1])
    elif damage == "delete":
        file.unlink()
    elif damage == "extra":
        (published / "inner" / "c").touch()
    else:
        (published / "manifest.json").write_text("{}")
    problems = storage.verify_folder(published)
    assert len(problems) == 1
    assert {"extra": "inner/c", "manifest": "manifest.json"}.get(damage, "b.safetensors") in problems[0]


@given(st.binary(max_size=200) | st.from_regex(r'\{"format": ?"qframe-manifest-1", ?"files": ?.{0,60}', fullmatch=True))
@settings(max_examples=150, deadline=None)
def test_no_manifest_makes_verifying_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes | str) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    storage.verify_folder(folder)
    storage.is_published(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_may_not_name_files_outside(tmp_path: Path, name: str) -> None:
    files = {name: {"sha256": "", "size": 0}}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "qframe-manifest-1", "files": files}))
    assert "outside" in storage.verify_folder(tmp_path)[0]


def test_links_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(QframeError, match="plain files"):
        storage.publish_folder(tmp_path / "out", lambda folder: (folder / "l").symlink_to("/etc/passwd"))
    assert list(tmp_path.iterdir()) == []


def test_only_published_folders_are_removed(tmp_path: Path, published: Path) -> None:
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo").touch()
    with pytest.raises(WeightsError, match="no manifest"):
        storage.remove_published(other)
    storage.remove_published(published)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday"]


def test_a_file_is_replaced_in_one_step_and_keeps_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    (tmp_path / "plain").touch()
    for content in (b"one", b"two"):
        storage.write_file(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert hidden(tmp_path) == []


WRITER = """
import sys, time
from pathlib import Path
from qframe.files.storage import publish_folder

def write(folder):
    (folder / "half").write_bytes(b"x")
    print("writing", flush=True)
    time.sleep(60)

publish_folder(Path(sys.argv[1]), write)
"""


def test_the_draft_of_a_living_writer_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "out")], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert storage.clear_leftovers(tmp_path) == []
        assert len(hidden(tmp_path)) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    (tmp_path / ".mine.qframe").touch()
    assert len(storage.clear_leftovers(tmp_path)) == 1
    assert hidden(tmp_path) == [".mine.qframe"]


def test_leftovers_that_are_links_are_let_be(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / ".x.0.qframe-part").symlink_to(tmp_path / "precious")
    assert storage.clear_leftovers(tmp_path) == []
    assert (tmp_path / "precious").exists()


LOCKER = """
import sys, time
from pathlib import Path
from qframe.files.storage import lock_folder

with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_by_name_and_a_killed_one_frees_the_folder(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOCKER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(WeightsError, match=f"process {process.pid}"), storage.lock_folder(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with storage.lock_folder(tmp_path):
        pass


def test_a_reader_never_sees_a_visible_folder_that_is_not_valid(tmp_path: Path) -> None:
    """Writers are killed at arbitrary moments; whatever is visible verifies."""
    code = """
import sys
from pathlib import Path
from qframe.files.storage import publish_folder
root = Path(sys.argv[1])
print("ready", flush=True)
def write(folder):
    for n in range(3):
        (folder / str(n)).write_bytes(bytes(2000))
for i in range(10_000):
    publish_folder(root / f"{sys.argv[2]}-{i}", write)
"""
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(round_)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 0.15 + 0.03 * round_
        while time.monotonic() < deadline or not list(tmp_path.glob(f"{round_}-*")):
            assert process.poll() is None, "the writer ended by itself"
            for folder in list(tmp_path.glob("[0-9]*"))[-3:]:
                assert storage.verify_folder(folder) == []
        process.kill()
        process.wait()
    assert storage.clear_leftovers(tmp_path) is not None
    assert hidden(tmp_path) == []
    visible = list(tmp_path.iterdir())
    assert visible
    assert all(storage.verify_folder(folder) == [] for folder in visible)
