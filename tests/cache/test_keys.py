"""A key changes with everything the value depends on, and with nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from qframe.cache import Cache, KeyMaker, PictureDigests, loss_map_key, pixel_key, text_key
from qframe.cache import keys as keys_module
from qframe.errors import DataError
from qframe.interfaces import TextInput
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput
from tests.cache.world import GEOMETRY, MADE_BY, TinyRecipe, png


def maker(**changes: object) -> KeyMaker:
    values: dict[str, object] = {"encoder": {"weights": "e"}, "codec": {"weights": "c"}, "recipe": ("family:Recipe", 1)}
    return KeyMaker(**{**values, **changes}, digests=PictureDigests())  # type: ignore[arg-type]


def picture(number: int = 1, origin: str = "a picture") -> Picture:
    return Picture(origin, png(number))


def pixels(number: int = 1, geometry: Geometry = GEOMETRY, origin: str = "a picture") -> PixelInput:
    return PixelInput(picture(number, origin), geometry)


def text(prompt: str = "a prompt", seen: Sequence[PixelInput] | None = None) -> TextInput:
    return TextInput(prompt, tuple(seen if seen is not None else (pixels(1), pixels(2))))


LATENTS = {
    "picture": pixel_key(pixels(2), maker()),
    "smallest area": pixel_key(pixels(1, Geometry(2, 64 * 64, multiple=16)), maker()),
    "largest area": pixel_key(pixels(1, Geometry(1, 64 * 65, multiple=16)), maker()),
    "multiple": pixel_key(pixels(1, Geometry(1, 64 * 64, multiple=8)), maker()),
    "codec": pixel_key(pixels(), maker(codec={"weights": "c2"})),
    "recipe": pixel_key(pixels(), maker(recipe=("family:Other", 1))),
    "recipe's version": pixel_key(pixels(), maker(recipe=("family:Recipe", 2))),
    "kind": loss_map_key(pixels(), maker()),
}
TEXT = {
    "prompt": text_key(text("another prompt"), maker()),
    "case": text_key(text("A prompt"), maker()),
    "space": text_key(text("a prompt "), maker()),
    "no picture": text_key(text(seen=()), maker()),
    "one picture": text_key(text(seen=(pixels(1),)), maker()),
    "order of pictures": text_key(text(seen=(pixels(2), pixels(1))), maker()),
    "a picture's bytes": text_key(text(seen=(pixels(1), pixels(3))), maker()),
    "a picture's geometry": text_key(text(seen=(pixels(1), pixels(2, Geometry(1, 1024)))), maker()),
    "encoder": text_key(text(), maker(encoder={"weights": "e2"})),
    "recipe": text_key(text(), maker(recipe=("family:Other", 1))),
    "recipe's version": text_key(text(), maker(recipe=("family:Recipe", 2))),
}


@pytest.mark.parametrize("change", LATENTS)
def test_the_key_of_latents_changes_with(change: str) -> None:
    assert LATENTS[change] != pixel_key(pixels(), maker())


@pytest.mark.parametrize("change", TEXT)
def test_the_key_of_text_changes_with(change: str) -> None:
    assert TEXT[change] != text_key(text(), maker())


def test_no_two_changes_make_the_same_key() -> None:
    assert len({*LATENTS.values(), *TEXT.values()}) == len(LATENTS) + len(TEXT)


@pytest.mark.parametrize("constant", ["POLICY", "SCHEMA"])
def test_keys_change_with_the_policies_of_this_code(constant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pixel_key(pixels(), maker()), text_key(text(), maker()), loss_map_key(pixels(), maker())
    monkeypatch.setattr(keys_module, constant, 99)
    after = pixel_key(pixels(), maker()), text_key(text(), maker()), loss_map_key(pixels(), maker())
    assert not set(before) & set(after)


def test_another_encoder_leaves_the_latents_alone_and_another_codec_the_text() -> None:
    assert pixel_key(pixels(), maker(encoder={"weights": "e2"})) == pixel_key(pixels(), maker())
    assert text_key(text(), maker(codec={"weights": "c2"})) == text_key(text(), maker())


def test_what_a_picture_is_called_and_where_it_lies_is_not_in_the_key(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(1))
    named = PixelInput(Picture("elsewhere", path), GEOMETRY)
    assert pixel_key(named, maker()) == pixel_key(pixels(1), maker())


def test_a_file_renamed_or_touched_keeps_its_key_and_a_changed_one_does_not(tmp_path: Path) -> None:
    path, other = tmp_path / "x.png", tmp_path / "y.png"
    path.write_bytes(png(1))
    before = pixel_key(PixelInput(Picture("x", path), GEOMETRY), maker())
    os.utime(path, (1_600_000_000, 1_600_000_000))
    assert pixel_key(PixelInput(Picture("x", path), GEOMETRY), maker()) == before
    path.rename(other)
    assert pixel_key(PixelInput(Picture("y", other), GEOMETRY), maker()) == before
    other.write_bytes(png(2))
    assert pixel_key(PixelInput(Picture("y", other), GEOMETRY), maker()) != before


def test_prompts_of_any_text_have_keys() -> None:
    prompts = ["", "汉字", "\0", "\ud800", "é", "e\u0301", '"', "\\", "\n"]
    assert len({text_key(text(prompt), maker()) for prompt in prompts}) == len(prompts)


def test_a_recipe_is_known_by_its_class_and_version() -> None:
    made = KeyMaker.of(TinyRecipe(), MADE_BY, PictureDigests())
    assert made.recipe == ("tests.cache.world:TinyRecipe", 1)


def test_a_picture_is_read_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = Picture.read
    monkeypatch.setattr(Picture, "read", lambda self: (reads.append(self.origin), real(self))[1])
    path = tmp_path / "x.png"
    path.write_bytes(png(1))
    digests = PictureDigests()
    one, two, three = Picture("one", path), Picture("two", path), picture(1, "three")
    assert len({digests(one), digests(two), digests(one), digests(three), digests(three)}) == 1
    assert reads == ["one", "three"]


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on, so that the file's stamp is trusted."""
    now = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)


def test_digests_of_files_are_kept_between_runs_and_forgotten_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(1))
    settled(path, monkeypatch)
    with Cache(tmp_path / "cache") as cache:
        digests = PictureDigests(cache)
        first = digests(Picture("x", path))
        digests.save()
    with Cache(tmp_path / "cache") as cache:
        with monkeypatch.context() as patch:
            patch.setattr(Picture, "read", lambda self: pytest.fail("read again"))
            assert PictureDigests(cache)(Picture("x", path)) == first
        path.write_bytes(png(2))
        assert PictureDigests(cache)(Picture("x", path)) == picture(2).digest() != first


def test_a_file_changed_behind_a_kept_time_stamp_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(1))
    settled(path, monkeypatch)
    with Cache(tmp_path / "cache") as cache:
        digests = PictureDigests(cache)
        digests(Picture("x", path))
        digests.save()
        stamp = path.stat()
        path.write_bytes(png(2)[: len(png(1))].ljust(len(png(1)), b"\0"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert path.stat().st_size == stamp.st_size
        assert PictureDigests(cache)(Picture("x", path)) == Picture("x", path).digest()


def test_the_digest_of_a_file_written_just_now_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(1))
    with Cache(tmp_path / "cache") as cache:
        digests = PictureDigests(cache)
        digests(Picture("x", path))
        digests.save()
        found = path.stat()
        stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        assert cache.recall_digest(str(path), stamp) is None


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 5"):
        PictureDigests()(Picture("row 5", tmp_path / "gone.png"))
