"""Files that did not change are not read again, and those that did are."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import pytest

from qframe.cache import Cache
from qframe.files import model_folder as module
from qframe.files.digests import FileDigests
from qframe.files.model_folder import ModelFolder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their digest. Time goes on, so that stamps are trusted."""
    found: list[str] = []
    real = module._file_digest
    monkeypatch.setattr(module, "_file_digest", lambda file, told: (found.append(file.name), real(file, told))[1])
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    return found


def test_weights_are_read_once_until_they_change(tmp_path: Path, reads: list[str]) -> None:
    folder = tmp_path / "model" / "vae"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "a.safetensors").write_bytes(b"one")

    def digest() -> str:
        with Cache(tmp_path / "cache") as cache:
            digests = FileDigests(cache)
            found = attrs.evolve(ModelFolder.open(tmp_path / "model"), digests=digests).digest("vae")
            digests.save()
        return found

    first = digest()
    assert first == ModelFolder.open(tmp_path / "model").digest("vae")
    reads.clear()
    assert digest() == first
    assert reads == []
    (folder / "a.safetensors").write_bytes(b"two")
    assert digest() != first
    assert reads == ["a.safetensors"]


def test_without_a_store_a_file_is_read_once_in_a_run(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a.json").write_text("{}")
    model = attrs.evolve(ModelFolder.open(tmp_path), digests=FileDigests())
    assert model.digest("vae") == model.digest("vae")
    assert reads == ["a.json"]
    plain = ModelFolder.open(tmp_path)
    assert plain.digest("vae") == plain.digest("vae")
    assert reads == ["a.json"] * 3, "a model folder alone remembers nothing"
