"""A model folder is read with care, and from the hub only as far as it is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from qframe.errors import UntrustedError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.files.weight_header import index_variant, variant_of
from qframe.progress import SilentProgress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "vae").mkdir(parents=True)
    (model / "model_index.json").write_text('{"_class_name": "QwenImagePipeline"}')
    (model / "vae" / "config.json").write_text('{"z_dim": 4}')
    save_file({"a": torch.zeros(2)}, model / "vae" / "weights.safetensors")
    return model


def test_configuration_is_read_by_component(folder: Path) -> None:
    model = ModelFolder.open(folder)
    assert model.pipeline_config["_class_name"] == "QwenImagePipeline"
    assert model.config("vae") == {"z_dim": 4}
    assert [file.name for file in model.weight_files("vae")] == ["weights.safetensors"]


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such/folder", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id_says_what_to_give(name: str) -> None:
    with pytest.raises(WeightsError, match="there is no such folder") as caught:
        ModelFolder.open(name)
    assert "model_index.json" in str(caught.value.hint)


def test_a_missing_or_broken_file_is_named(folder: Path) -> None:
    model = ModelFolder.open(folder)
    with pytest.raises(WeightsError, match=r"transformer/config.json cannot be read"):
        model.config("transformer")
    (folder / "vae" / "config.json").write_text('{"z_dim": 4')
    with pytest.raises(WeightsError, match=r"vae/config.json is not valid JSON"):
        model.config("vae")
    (folder / "vae" / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="holds a list, expected an object"):
        model.config("vae")


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "weights.safetensors", "b": "more-00002.safetensors"}}
    (folder / "vae" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"lacks 1 of 2 shards: more-00002.safetensors"):
        ModelFolder.open(folder).weight_files("vae")


def test_code_and_pickles_are_refused(folder: Path) -> None:
    model = ModelFolder.open(folder)
    (folder / "vae" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(UntrustedError, match="auto_map"):
        model.config("vae")
    (folder / "vae" / "weights.safetensors").rename(folder / "vae" / "weights.bin")
    with pytest.raises(UntrustedError, match=r"vae holds code or pickled weights.*: weights\.bin"):
        model.weight_files("vae")
    (folder / "vae" / "weights.bin").unlink()
    with pytest.raises(WeightsError, match="no safetensors weights"):
        model.weight_files("vae")


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "optimizer.pt", "kernels.so", "model.ckpt"])
@pytest.mark.parametrize("place", ["vae", "."])
def test_code_and_pickles_beside_safetensors_are_refused_by_name(folder: Path, place: str, name: str) -> None:
    (folder / place / name).write_bytes(b"")
    for read in (ModelFolder.check_shards, ModelFolder.weight_files):
        with pytest.raises(UntrustedError, match=f"code or pickled weights.*: {name}") as caught:
            read(ModelFolder.open(folder), "vae")
        assert caught.value.exit_code == 7
        assert "safetensors alone" in str(caught.value.hint)


def test_the_digest_changes_with_content_and_names_and_nothing_else(folder: Path) -> None:
    model = ModelFolder.open(folder)
    first = model.digest("vae")
    (folder / "vae" / ".cache").write_text("not part of it")
    (folder / "model_index.json").write_text("{}")
    assert model.digest("vae") == first
    save_file({"a": torch.ones(2)}, folder / "vae" / "weights.safetensors")
    changed = model.digest("vae")
    assert changed != first
    (folder / "vae" / "weights.safetensors").rename(folder / "vae" / "renamed.safetensors")
    assert model.digest("vae") != changed


def test_the_dtypes_of_weights_are_read_from_the_headers_alone(folder: Path) -> None:
    model = ModelFolder.open(folder)
    weights = folder / "vae" / "more.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2)}, weights, metadata={"format": "pt"})
    assert {"BF16", "F32"} <= model.stored_dtypes("vae")
    assert model.stored_dtypes("nowhere") == frozenset()
    weights.write_bytes(weights.read_bytes()[:-12])
    with pytest.raises(WeightsError, match=r"vae/more\.safetensors .* it was cut off"):
        model.stored_dtypes("vae")
    header = json.dumps({"a": {"dtype": "F16", "shape": [2**35], "data_offsets": [0, 2**36]}}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(weights, 8 + len(header) + 2**36)  # 64 GiB of holes, whose reading would take minutes
    assert "F16" in model.stored_dtypes("vae"), "the numbers are not read"
    for damaged in (b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": {}}'):
        weights.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"vae/more\.safetensors has no header of safetensors"):
            model.stored_dtypes("vae")


def test_reading_large_weights_for_a_digest_is_told_in_megabytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, list[int]]] = []

    class Heard(SilentProgress):
        @contextmanager
        def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Heard]:
            told.append((name, total, []))
            yield self

        def advance(self, count: int = 1, **metrics: float) -> None:
            told[-1][2].append(count)

    (folder / "vae" / "more.safetensors").write_bytes(bytes(25_500_000))
    silent = ModelFolder.open(folder)
    plain = silent.digest("vae")
    model = attrs.evolve(silent, progress=Heard())
    assert model.digest("vae") == plain
    assert told == [], "what is read in no time is not worth telling"
    monkeypatch.setattr("qframe.files.model_folder._WORTH_TELLING", 1_000_000)
    assert model.digest("vae") == plain
    ((name, total, steps),) = told
    assert name == "fingerprinting vae (MB)"
    assert total == sum(steps) == 25
    assert len(steps) > 2
    assert model == silent, "who listens is no part of what it is"


def test_from_the_hub_weights_are_fetched_when_a_component_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, *, allow_patterns: Sequence[str]) -> str:
        asked.append((name, list(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = ModelFolder.open("owner/name")
    assert model.config("vae") == {"z_dim": 4}
    assert len(asked) == 1
    assert not any("safetensors" in pattern for pattern in asked[0][1])
    model.weight_files("vae")
    assert asked[1][0] == "owner/name"
    assert "vae/*.safetensors" in asked[1][1]
    assert all(pattern.startswith("vae/") for pattern in asked[1][1])


def test_a_revision_and_a_variant_of_a_model_on_the_hub_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(name: str, *, allow_patterns: Sequence[str], revision: str | None) -> str:
        asked.append((name, revision, list(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = ModelFolder.open("owner/name@refs/pr/3", "fp16")
    assert model.revision == "refs/pr/3"
    model.weight_files("vae")  # the folder has no such variant of this component, so the plain files are asked for too
    assert [(name, revision) for name, revision, _ in asked] == [("owner/name", "refs/pr/3")] * 3
    assert "vae/*.fp16.safetensors" in asked[1][2]
    assert "vae/*.safetensors" not in asked[1][2]
    assert "vae/*.safetensors" in asked[2][2]
    save_file({"a": torch.ones(2)}, folder / "vae" / "weights.fp16.safetensors")
    assert [file.name for file in model.weight_files("vae")] == ["weights.fp16.safetensors"]
    assert len(asked) == 4, "the variant is there, and nothing else is fetched"
    assert model.identity() != ModelFolder.open("owner/name@refs/pr/3").identity()


def test_a_folder_with_an_at_sign_is_a_folder(folder: Path) -> None:
    named = folder.rename(folder.with_name("name@1"))
    assert ModelFolder.open(named).revision is None


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", None),
        ("model.fp16.safetensors", "fp16"),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("model-00001-of-00002.safetensors", None),
        ("qwen_image_fp8_e4m3fn.safetensors", None),
    ],
)
def test_the_variant_is_in_the_name(name: str, variant: str | None) -> None:
    assert variant_of(name) == variant
    index = name.split("-0")[0].removesuffix(".safetensors")
    assert index_variant(f"{index}.safetensors.index.json") == variant
    assert index_variant("model.safetensors.index.fp16.json") == "fp16"


def test_a_hub_that_does_not_answer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, *, allow_patterns: Sequence[str], revision: str | None = None) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match=r"'owner/name': no such folder, and the hub could not give it: offline"):
        ModelFolder.open("owner/name")
    with pytest.raises(WeightsError, match=r"at revision 'v2': offline"):
        ModelFolder.open("owner/name@v2")
