from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from qframe.errors import ConfigError, DataError, UntrustedError
from qframe.pictures.picture import Picture
from qframe.sample.jobs.picture_files import FORMATS, LONGEST, check_text, encode_picture, read_text, write_picture

SUFFIXES = sorted(FORMATS)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))


def text_of(data: bytes) -> str | None:
    return read_text(Picture("it", data))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", ["{}", "x" * LONGEST, '{"prompt": "\\u4e2d"}'])
def test_a_text_comes_back_and_changes_no_pixel(suffix: str, text: str) -> None:
    data, plain = encode_picture(noise(), suffix, text), encode_picture(noise(), suffix)
    assert text_of(data) == text
    assert text_of(plain) is None
    assert Image.open(io.BytesIO(data)).tobytes() == Image.open(io.BytesIO(plain)).tobytes()


def test_a_text_that_a_jpeg_could_not_hold_is_refused_for_all() -> None:
    with pytest.raises(ConfigError, match=f"{LONGEST + 1} bytes, at most {LONGEST}"):
        check_text("x" * (LONGEST + 1))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_half_a_picture_still_tells_its_text(suffix: str) -> None:
    data = encode_picture(noise().resize((256, 256)), suffix, "{}")
    assert text_of(data[: int(len(data) * 0.9)]) == "{}"


def test_texts_of_other_programs_are_none_of_ours() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "{}")
    data = io.BytesIO()
    noise().save(data, "PNG", pnginfo=info)
    assert text_of(data.getvalue()) is None
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0{}"
    data = io.BytesIO()
    noise().save(data, "JPEG", exif=exif.tobytes())
    assert text_of(data.getvalue()) is None


def test_a_huge_text_is_refused_before_anybody_reads_it() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("qframe", "[" * 900_000)
    data = io.BytesIO()
    noise().save(data, "PNG", pnginfo=info)
    with pytest.raises(UntrustedError, match="at most"):
        text_of(data.getvalue())


def test_a_compressed_bomb_of_text_is_a_message() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("qframe", " " * 50_000_000, zip=True)
    data = io.BytesIO()
    noise().save(data, "PNG", pnginfo=info)
    with pytest.raises(DataError):
        text_of(data.getvalue())


def test_damaged_metadata_end_in_a_text_or_a_message() -> None:
    """Any one byte of the head of a JPEG changed: never another exception."""
    data = encode_picture(noise(), ".jpg", '{"a": 1}')
    for place in range(220):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        try:
            found = text_of(bytes(changed))
        except DataError:
            continue
        assert found is None or isinstance(found, str)


def test_a_picture_is_written_whole_and_alone(tmp_path: Path) -> None:
    write_picture(tmp_path / "new" / "a.webp", noise(), "{}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.webp"]
    assert Image.open(tmp_path / "new" / "a.webp").size == (12, 8)
