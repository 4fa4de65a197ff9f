"""What bytes become which pixels; every policy, and what is refused."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from qframe.errors import DataError, NumericsError
from qframe.pictures import pixels as pictures
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput


def noise(height: int = 40, width: int = 56, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def opened(data: bytes, **options: Any) -> np.ndarray[Any, Any]:
    image = pictures.open_picture(Picture("a picture", data), **options)
    assert image.mode == "RGB"
    assert image.info == {}
    return np.asarray(image)


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(data, **options)
    assert caught.value.message.startswith("a picture: ")
    return str(caught.value)


@pytest.mark.parametrize(("format_", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_pixels_that_were_saved(format_: str, options: dict[str, Any]) -> None:
    assert (opened(encoded(Image.fromarray(noise()), format_, **options)) == noise()).all()


def test_a_jpeg_and_a_still_gif_are_read() -> None:
    assert opened(encoded(Image.fromarray(noise()), "JPEG")).shape == (40, 56, 3)
    assert opened(encoded(Image.fromarray(noise()), "GIF")).shape == (40, 56, 3)


def test_black_pictures_are_pictures() -> None:
    assert opened(encoded(Image.new("RGB", (8, 8)))).max() == 0


@pytest.mark.parametrize("format_", ["PPM", "ICO", "TGA", "PCX", "EPS"])
def test_formats_that_are_not_listed_are_refused(format_: str) -> None:
    assert "known format" in refusal(encoded(Image.fromarray(noise(32, 32)), format_))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_half_a_file_is_refused(format_: str, kept: float) -> None:
    data = encoded(Image.fromarray(noise()), format_)
    refusal(data[: int(len(data) * kept)])


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    assert "known format" in refusal(b"")
    with pytest.raises(DataError, match=r"row 3: cannot read picture .*gone.png"):
        pictures.open_picture(Picture("row 3", tmp_path / "gone.png"))
    with pytest.raises(DataError, match="not a file"):
        pictures.open_picture(Picture("row 3", tmp_path))


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_bombs_are_refused_before_decoding(side: int, recwarn: pytest.WarningsRecorder) -> None:
    assert "pixels" in refusal(bomb(side, side))
    assert not recwarn.list


def test_the_limit_of_pixels_can_be_set() -> None:
    data = encoded(Image.fromarray(noise()))
    assert "40" in refusal(data, limit_pixels=40 * 56 - 1)
    assert opened(data, limit_pixels=40 * 56).shape == (40, 56, 3)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format_: str) -> None:
    values = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    expected = np.round(values / 257.0)
    assert (opened(encoded(Image.fromarray(values), format_)) == expected[..., None]).all()


def test_16_bit_colour_is_scaled_not_clipped() -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x1234, 0x8000, 0xABCD, 0xFFFF, 0x00FF)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert (np.abs(opened(png).astype(int)[0] - [[0, 0x12, 0x80], [0xAB, 0xFF, 0]]) <= 1).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_known_range_are_refused(mode: str) -> None:
    assert "32-bit" in refusal(encoded(Image.new(mode, (8, 8), 7), "TIFF"))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_alpha_is_laid_over_the_stated_colour(background: tuple[int, int, int]) -> None:
    rgba = noise(channels=4)
    alpha = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * alpha + np.array(background) * (1 - alpha)
    assert np.abs(opened(encoded(Image.fromarray(rgba)), background=background) - expected).max() <= 1


def test_a_codec_of_four_channels_sees_transparency_and_others_never_do() -> None:
    rgba = noise(32, 32, channels=4)
    pixels = PixelInput(Picture("a picture", encoded(Image.fromarray(rgba))), Geometry(1024, 1024, multiple=32))
    assert (np.asarray(pictures.open_fitted(pixels, channels=4)) == rgba).all()
    assert pictures.open_fitted(pixels).mode == "RGB"
    assert pictures.to_pixels(pictures.open_fitted(pixels, channels=4)).shape == (4, 32, 32)
    opaque = attrs.evolve(pixels, picture=Picture("opaque", encoded(Image.fromarray(noise(32, 32)))))
    assert np.asarray(pictures.open_fitted(opaque, channels=4))[..., 3].min() == 255
    back = pictures.from_pixels(pictures.to_pixels(pictures.open_fitted(pixels, channels=4)))
    assert (np.asarray(back) == rgba).all()


def test_transparent_black_is_white_by_default() -> None:
    assert opened(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))).min() == 255
    assert opened(encoded(Image.new("LA", (8, 8), (0, 0)))).min() == 255


def test_a_transparent_colour_of_grey_palette_and_rgb_is_laid_over_white() -> None:
    for image in (Image.new("L", (4, 4)), Image.new("P", (4, 4)), Image.new("RGB", (4, 4))):
        transparency = (0, 0, 0) if image.mode == "RGB" else 0
        assert opened(encoded(image, transparency=transparency)).min() == 255, image.mode
    values = np.full((4, 4), 1799, dtype=np.uint16)
    assert opened(encoded(Image.fromarray(values), transparency=1799)).min() == 255


def test_palettes_and_two_levels_become_rgb() -> None:
    palette = Image.fromarray(noise()).quantize(16)
    assert (opened(encoded(palette)) == np.asarray(palette.convert("RGB"))).all()
    two = Image.fromarray(noise()[..., 0] > 127)
    assert set(np.unique(opened(encoded(two)))) == {0, 255}


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(opened(encoded(cmyk, "TIFF"))[0, 0].astype(int) - [0, 255, 255]).max() <= 1


def wide_profile() -> bytes:
    """A made-up matrix profile whose primaries are sRGB's red and blue exchanged: its effect cannot be missed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    profile[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], profile[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_a_colour_profile_is_applied() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert np.abs(opened(encoded(red, icc_profile=wide_profile()))[0, 0].astype(int) - [0, 0, 255]).max() <= 3


def test_an_srgb_profile_moves_no_value() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (opened(encoded(Image.fromarray(noise()), icc_profile=srgb)) == noise()).all()


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_a_profile_that_cannot_apply_is_left_out_with_a_warning(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    profile = b"nonsense" if mode == "RGB" else wide_profile()
    image = Image.fromarray(noise()).convert(mode)
    with caplog.at_level(logging.WARNING):
        data = opened(encoded(image, "TIFF", icc_profile=profile))
    assert (data == np.asarray(image.convert("RGB"))).all()
    assert "a picture: its colour profile" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format_: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # the top left quarter is white
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 1, 7: 1, 8: 3}
    stored = np.rot90(upright, turns[orientation])
    if orientation in (2, 4, 5, 7):
        flipped_axis = {2: 1, 4: 1, 5: 1, 7: 1}[orientation]
        stored = np.flip(stored, flipped_axis)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(stored.copy()), format_, exif=exif)
    data = opened(file)
    assert data.shape == upright.shape
    assert pictures.picture_size(Picture("a picture", file)) == (16, 32)
    assert np.abs(data.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(format_: str) -> None:
    frames = [Image.fromarray(noise(seed=i)) for i in range(3)]
    assert "several pages" in refusal(encoded(frames[0], format_, save_all=True, append_images=frames[1:]))


def test_the_photograph_of_a_phone_with_a_preview_is_read() -> None:
    frames = [Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (8, 8))]
    data = opened(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert data.shape == (16, 16, 3)
    assert data[..., 0].min() > 150


def test_text_bombs_in_a_png_are_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (80 * 1024 * 1024), zip=True)
    refusal(encoded(Image.new("RGB", (4, 4)), pnginfo=info))


HEADERS = {format_: encoded(Image.fromarray(noise(12, 9)), format_) for format_ in pictures.FORMATS}


@given(st.sampled_from(sorted(HEADERS)), st.data())
@settings(max_examples=400, deadline=5000)
def test_damaged_pictures_open_or_raise_a_data_error(format_: str, data: st.DataObject) -> None:
    original = bytearray(HEADERS[format_])
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(original)))
    try:
        pictures.open_picture(Picture("garbage", bytes(original[:cut] if data.draw(st.booleans()) else original)))
    except DataError as error:
        assert error.message.startswith("garbage: ")  # noqa: PT017 (it may as well open)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64 * 64, 96 * 96]))
@settings(max_examples=40, deadline=None)
def test_fitting_equals_diffusers_resizing(height: int, width: int, area: int) -> None:
    geometry = Geometry(area, area, multiple=16)
    image = Image.fromarray(noise(height, width))
    try:
        size = geometry.fit(height, width)
    except DataError:
        return
    theirs = VaeImageProcessor(vae_scale_factor=16).resize(image, *size)
    assert (np.asarray(pictures.fit(image, geometry)) == np.asarray(theirs)).all()


def test_a_picture_of_the_right_size_is_returned_as_it_is() -> None:
    image = Image.fromarray(noise(32, 64))
    assert pictures.fit(image, Geometry(32 * 64, 32 * 64, multiple=16)) is image


def test_pixels_equal_diffusers_preprocessing() -> None:
    image = Image.fromarray(noise(32, 48))
    theirs = VaeImageProcessor(vae_scale_factor=16).preprocess(image, 32, 48)[0]
    ours = pictures.to_pixels(image)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_pixels_of_other_modes_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="mode L"):
        pictures.to_pixels(Image.new("L", (4, 4)))


def test_a_round_trip_through_pixels_is_exact() -> None:
    assert (np.asarray(pictures.from_pixels(pictures.to_pixels(Image.fromarray(noise())))) == noise()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_pixels_equal_diffusers_postprocessing(dtype: torch.dtype) -> None:
    pixels = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = VaeImageProcessor(vae_scale_factor=16).postprocess(pixels[None])[0]
    assert (np.asarray(pictures.from_pixels(pixels)) == np.asarray(theirs)).all()


def test_pixels_that_are_not_finite_are_no_picture() -> None:
    with pytest.raises(NumericsError, match="not finite"):
        pictures.from_pixels(torch.full((3, 8, 8), torch.nan))


def weighed(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    return pictures.open_loss_map(PixelInput(Picture("weight", encoded(image)), geometry))


def test_a_weight_is_the_grey_value_over_255() -> None:
    grey = noise(16, 32)[..., 0]
    weight = weighed(Image.fromarray(grey), Geometry(512, 512, multiple=16))
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torch.from_numpy(grey / np.float32(255)))


def test_a_grey_picture_is_taken_by_its_values_alone() -> None:
    """No profile, no colours; and the picture that is given stays as it is."""
    image = Image.new("L", (4, 2), 100)
    image.info["icc_profile"] = b"a profile"
    grey = pictures.to_grey(image)
    assert (grey.mode, grey.tobytes(), grey.info) == ("L", bytes([100] * 8), {})
    assert image.info == {"icc_profile": b"a profile"}
    assert torch.equal(pictures.grey_values(grey), torch.full((2, 4), 100 / 255))


def test_a_grey_picture_of_another_mode_is_no_weight() -> None:
    with pytest.raises(ValueError, match="mode RGB"):
        pictures.grey_values(Image.new("RGB", (2, 2)))


def test_a_picture_of_the_right_size_is_not_resized() -> None:
    image = Image.new("L", (4, 2))
    assert pictures.resize(image, (2, 4)) is image
    assert pictures.resize(image, (3, 5)).size == (5, 3)


def test_a_weight_is_zero_where_it_is_transparent() -> None:
    assert weighed(Image.new("RGBA", (16, 16), (255, 255, 255, 0)), Geometry(256, 256, multiple=16)).max() == 0


def test_a_picture_too_narrow_for_its_geometry_is_named() -> None:
    narrow = PixelInput(Picture("row 7", encoded(Image.new("RGB", (2000, 2)))), Geometry(1024, 1024, multiple=32))
    with pytest.raises(DataError, match=r"row 7: .*too narrow"):
        pictures.open_fitted(narrow)
