"""Each change alone is told by its name: what is missing is compared with the nearest entry that is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from qframe.cache import Cache, DeclaredInputs, KeyMaker, PictureDigests, build_cache
from qframe.cache.shards import make_shard
from qframe.interfaces import Record
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture
from qframe_cache_tools.explain import PartReport, explain
from tests.cache.world import GEOMETRY, MADE_BY, Loader, TinyRecipe, png, record

RECORDS = [record(number) for number in range(8)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with Cache(folder) as cache:
        build_cache(DeclaredInputs(RECORDS, TinyRecipe()), Loader(), cache, MADE_BY)
    return folder


def told(
    folder: Path,
    one: Record = RECORDS[3],
    recipe: TinyRecipe | None = None,
    made_by: dict[str, dict[str, str]] = MADE_BY,
) -> dict[str, PartReport]:
    recipe = recipe or TinyRecipe()
    with Cache(folder) as cache:
        maker = KeyMaker.of(recipe, made_by, PictureDigests(cache))
        (parts,) = explain(cache, [recipe.inputs(one)], maker)
    return {part.part: part for part in parts}


def differences(parts: dict[str, PartReport]) -> dict[str, tuple[str, ...]]:
    return {name: part.differences for name, part in parts.items() if not part.stored}


def changed(role: str, **values: str) -> dict[str, dict[str, str]]:
    return {**MADE_BY, role: {**MADE_BY[role], **values}}


def versioned(version: int) -> TinyRecipe:
    return type("TinyRecipe", (TinyRecipe,), {"version": version, "__module__": TinyRecipe.__module__})()  # type: ignore[no-any-return]


def test_a_stored_sample_is_stored_in_all_its_parts(built: Path) -> None:
    parts = told(built)
    assert list(parts) == ["target", "reference 1", "caption", "empty prompt", "loss map"]
    assert all(part.stored and part.differences == () for part in parts.values())


def test_an_edited_caption_is_told_with_both_texts(built: Path) -> None:
    prompt = RECORDS[3].prompt
    assert differences(told(built, record(3, prompt=f"{prompt}!"))) == {
        "caption": (f"caption {prompt!r} -> {prompt + '!'!r}",)
    }


def test_a_changed_reference_is_told_of_its_latents_and_of_the_text_that_sees_it(built: Path) -> None:
    found = differences(told(built, record(3, references=(Picture("x", png(77)),))))
    assert found == {
        "reference 1": ("bytes of the picture changed",),
        "caption": ("bytes of picture 1 changed",),
        "empty prompt": ("bytes of picture 1 changed",),
    }


ENCODER = {"caption", "empty prompt"}
CODEC = {"target", "reference 1", "loss map"}


@pytest.mark.parametrize(
    ("made_by", "parts", "said"),
    [
        (changed("encoder", weights="f" * 64), ENCODER, "encoder weights changed"),
        (changed("encoder", positions="upstream"), ENCODER, "encoder positions mrope -> upstream"),
        (changed("encoder", dtype="bfloat16"), ENCODER, "encoder dtype float32 -> bfloat16"),
        (changed("encoder", transformers="6.0"), ENCODER, "encoder transformers nothing -> 6.0"),
        (changed("codec", weights="f" * 64), CODEC, "codec weights changed"),
        (changed("codec", dtype="bfloat16"), CODEC, "codec dtype float32 -> bfloat16"),
    ],
)
def test_each_change_of_a_component_is_told_alone(
    built: Path, made_by: dict[str, dict[str, str]], parts: set[str], said: str
) -> None:
    assert differences(told(built, made_by=made_by)) == dict.fromkeys(parts, (said,))


def test_another_area_and_another_recipe_version_are_told(built: Path) -> None:
    smaller = TinyRecipe(Geometry(1, GEOMETRY.max_area // 4, multiple=16))
    found = differences(told(built, recipe=smaller))
    assert found["target"] == found["loss map"] == ("geometry max_area 4096 -> 1024",)
    assert found["caption"] == ("geometry of picture 1: max_area 4096 -> 1024",)
    assert set(differences(told(built, recipe=versioned(2))).values()) == {("recipe version 1 -> 2",)}


def test_another_number_of_pictures_is_told_as_such(built: Path) -> None:
    two = record(3, references=(*RECORDS[3].references, *RECORDS[2].references))
    assert differences(told(built, two))["caption"] == ("pictures that the encoder sees 1 -> 2",)


def test_several_changes_are_all_told(built: Path) -> None:
    found = differences(told(built, recipe=versioned(2), made_by=changed("encoder", positions="upstream")))
    assert set(found["caption"]) == {"recipe version 1 -> 2", "encoder positions mrope -> upstream"}


def test_where_nothing_of_a_kind_is_stored_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    assert set(differences(told(tmp_path)).values()) == {()}


@pytest.mark.parametrize("kept", ["nothing", "a fingerprint"])
def test_caches_from_before_fields_were_kept_open_and_say_so(built: Path, tmp_path: Path, kept: str) -> None:
    def older(about: str) -> str:
        value: dict[str, Any] = json.loads(about)
        return json.dumps({**value, **{role: "0" * 64 for role in ("encoder", "codec") if role in value}})

    with Cache(built) as cache:
        entries = {key: cache.get(key) for shard, _ in cache.headers() for key in cache.keys_of(shard)}
        about = {key: text for _, header in cache.headers() if header for key, text in header.about.items()}
    renamed = {key[::-1]: tensors for key, tensors in entries.items()}
    name, data = make_shard(renamed, {} if kept == "nothing" else {k[::-1]: older(t) for k, t in about.items()})
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_bytes(data)
    with Cache(tmp_path) as cache:
        assert cache.get(next(iter(renamed)))
    found = differences(told(tmp_path))
    prefix = "" if kept == "nothing" else "codec: "
    assert found["target"] == (f"{prefix}written before fields were kept",)


def test_only_headers_are_read(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qframe.cache.reading as reading

    monkeypatch.setattr(reading, "read_tensor", lambda *a, **k: pytest.fail("a tensor was read"))
    assert differences(told(built, attrs.evolve(RECORDS[1], prompt="new")))
