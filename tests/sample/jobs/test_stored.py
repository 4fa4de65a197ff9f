from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image

from qframe.errors import DataError, UntrustedError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.sample.jobs.picture_files import write_picture
from qframe.sample.jobs.sources import digest_of, unchanged_picture
from qframe.sample.jobs.stored import Stored, StoredLora, check_files, check_models, read_stored
from tests.qwen.tiny import tiny_qwen_model

STORED = Stored(
    format="qframe-picture-1",
    family="qwen-edit",
    model="here",
    models={"here": "1"},
    config={"sampler.use": "heun", "dtype": "bfloat16"},
    loras=(StoredLora(file="a.safetensors", weight=0.5, sha256="2"),),
    request={"prompt": "make it \u4e2d", "steps": 2, "seed": 3, "image": ["in.png"]},
    files={"in.png": "3"},
    made_with={"torch": "2"},
)


def write(file: Path, **changes: Any) -> Path:
    values = {**json.loads(STORED.text()), **changes}
    write_picture(file, Image.new("RGB", (8, 8)), json.dumps(values))
    return file


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_what_a_picture_stores_comes_back_equal(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    write_picture(file, Image.new("RGB", (8, 8)), STORED.text())
    assert read_stored(file) == STORED
    assert read_stored(file).differences(STORED) == []


def test_only_what_changes_pixels_makes_a_difference() -> None:
    moved = attrs.evolve(
        STORED,
        model="there",
        models={"there": "1"},
        loras=(StoredLora(file="b.safetensors", weight=0.5, sha256="2"),),
        request={**STORED.request, "image": ["moved.png"]},
        files={"moved.png": "3"},
        made_with={},
    )
    assert moved.differences(STORED) == []
    other = attrs.evolve(
        STORED,
        models={"here": "9"},
        loras=(StoredLora(file="a.safetensors", weight=0.6, sha256="2"),),
        request={**STORED.request, "seed": 4},
        files={"in.png": "4"},
        config={"sampler.use": "heun"},
    )
    assert other.differences(STORED) == ["dtype", "image", "lora", "model", "seed"]


def test_configuration_becomes_tables() -> None:
    assert STORED.config_tables() == {"model": "here", "sampler": {"use": "heun"}, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "qframe-picture-2"}, "format: expected one of"),
        ({"code": "x"}, "code: unknown key"),
        ({"family": 3}, "family: expected a string, got 3"),
        ({"loras": [{"file": "a"}]}, "loras.0.weight: missing"),
        ({"loras": [{"file": "a", "weight": float("nan"), "sha256": ""}]}, "finite"),
        ({"config": {"data.path": "/etc/passwd"}}, "sets 'data.path'"),
        ({"config": {"output": "/"}}, "sets 'output'"),
        ({"config": {"train.max_steps": 3}}, "sets 'train.max_steps'"),
        ({"config": {"sampler..use": 3}}, "sets 'sampler..use'"),
    ],
)
def test_what_is_not_as_qframe_writes_it_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UntrustedError, match=r"a\.png") as raised:
        read_stored(write(tmp_path / "a.png", **changes))
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 50_000, '{"a": 1, "a": 2}', "9" * 50_000, "\\u0000", "{}"])
def test_any_text_ends_in_a_message(tmp_path: Path, text: str) -> None:
    write_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), text)
    with pytest.raises((UntrustedError, DataError)):
        read_stored(tmp_path / "a.png")


def test_a_picture_without_a_request_is_reported(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="stores no request of qframe"):
        read_stored(tmp_path / "a.png")


def test_missing_and_changed_files_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.png").write_bytes(b"other")
    with pytest.raises(DataError) as raised:
        check_files(STORED, (), "old.png")
    assert "--image in.png: is not the file that it was made from" in raised.value.message
    assert "--lora a.safetensors: cannot be read" in raised.value.message
    assert raised.value.hint is not None
    assert "--image FILE or --lora FILE" in raised.value.hint
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        check_files(STORED, ("image",), "old.png")
    check_files(STORED, ("image", "lora"), "old.png")


def test_another_model_is_told_by_name() -> None:
    with pytest.raises(WeightsError, match="model 'here' is not what it was"):
        check_models(STORED, attrs.evolve(STORED, models={"here": "2"}), "old.png")
    check_models(STORED, attrs.evolve(STORED, models={"elsewhere": "2"}), "old.png")


def test_a_picture_that_changes_while_it_waits_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "in.png"
    file.write_bytes(b"first")
    picture = unchanged_picture("in", file, digest_of(file, "in"))
    assert picture.read() == b"first"
    file.write_bytes(b"other")
    with pytest.raises(DataError, match="was changed while this ran"):
        picture.read()


def test_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="not a file"):
            digest_of(path, "it")


def test_the_identity_of_a_model_follows_its_contents(tmp_path: Path) -> None:
    folder = tiny_qwen_model(tmp_path / "model").folder
    before = ModelFolder.open(folder).identity()
    assert ModelFolder.open(folder.rename(tmp_path / "moved")).identity() == before
    weights = next((tmp_path / "moved" / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert ModelFolder.open(tmp_path / "moved").identity() != before


def test_the_identity_of_large_weights_sees_their_training(tmp_path: Path) -> None:
    """Files above a megabyte are probed: all of the body moves, or the head, or the size."""
    (tmp_path / "transformer").mkdir()
    weights = tmp_path / "transformer" / "model.safetensors"
    found = set()
    for head, body, size in ((b"a", b"x", 0), (b"b", b"x", 0), (b"a", b"y", 0), (b"a", b"x", 1)):
        weights.write_bytes(head + body * (3_000_000 + size))
        found.add(ModelFolder.open(tmp_path).identity())
    assert len(found) == 4
