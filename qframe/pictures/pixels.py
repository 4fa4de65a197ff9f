"""Decodes the bytes of a picture into pixels, and makes pictures of pixels, alike for training, cache and sampling.

If a change of this module makes other pixels of the same bytes, POLICY must be raised. It is part of the cache's keys,
so that pictures are then encoded again.
"""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from qframe.errors import DataError, NumericsError
from qframe.pictures.geometry import Geometry, Size
from qframe.pictures.picture import Picture, PixelInput

logger = logging.getLogger(__name__)

POLICY = 1
"""The version of decoding, which is part of the cache's keys."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""The picture formats that are read, by the names that Pillow has for them."""
LIMIT_PIXELS = 100_000_000
"""The most pixels that a picture may have, unless a caller sets another limit."""
WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)
_LARGEST_FILE = 1024**3
_FILTER = Image.Resampling.LANCZOS  # what diffusers' VaeImageProcessor resizes with
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_ORIENTATION = 0x0112
_QUARTER_TURNS = {5, 6, 7, 8}  # EXIF 2.32, 4.6.4, tag 274
_WITHOUT_RANGE = {"I", "F"}

# The exceptions that Pillow's decoders were seen to raise on damaged files, besides its own DecompressionBombError.
DAMAGED = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    RuntimeError, EOFError, struct.error, zlib.error,
)  # fmt: skip


class _Silence:
    """A context in which Pillow's warnings are not shown. Several threads may be inside at once.

    `warnings.catch_warnings` changes what the whole process shows, so that a thread that leaves it last may bring back
    what another one had set. Here the first thread changes it, and the last one brings it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


_SILENCE = _Silence()


def open_picture(
    picture: Picture,
    *,
    limit_pixels: int = LIMIT_PIXELS,
    background: tuple[int, int, int] | None = WHITE,
) -> Image.Image:
    """Open and decode a picture, and return it as 8-bit sRGB, upright and without metadata.

    The EXIF orientation and the colour profile are applied. A profile that is damaged, or made for another colour space
    than the picture has, is ignored with a warning in the log. 16-bit samples are scaled to 8 bits.

    Args:
        picture: The picture.
        limit_pixels: The most pixels that the picture may have.
        background: The RGB colour that shows through where the picture is transparent. None keeps the transparency, and
            the result is RGBA.

    Raises:
        DataError: The picture is in none of FORMATS, is damaged or cut short, has several frames or pages, has more
            than `limit_pixels` pixels, or has 32-bit samples, for which the value of white is unknown. The message
            names `picture.origin`.
    """
    return to_rgb(_load(picture, limit_pixels), origin=picture.origin, background=background)


def open_fitted(pixels: PixelInput, *, channels: int = 3, limit_pixels: int = LIMIT_PIXELS) -> Image.Image:
    """Open a picture as `open_picture` does, and resize it to the size that its geometry decides.

    Args:
        pixels: The picture and its geometry.
        channels: With 3 the result is RGB, white where the picture is transparent; with 4 it is RGBA.
        limit_pixels: The most pixels that the picture may have before it is resized.

    Raises:
        DataError: `open_picture` cannot open the picture, or the picture is too narrow for its geometry.
        ValueError: `channels` is neither 3 nor 4.
    """
    if channels not in (3, 4):
        raise ValueError(f"pictures are opened with 3 or 4 channels, not {channels}")
    background = WHITE if channels == 3 else None
    return _fit(open_picture(pixels.picture, limit_pixels=limit_pixels, background=background), pixels)


def picture_size(picture: Picture, *, limit_pixels: int = LIMIT_PIXELS) -> Size:
    """Return the (height, width) in pixels that a picture has when it is upright. The picture is not decoded.

    Raises:
        DataError: Same as in `open_picture`, except that damage behind the picture's header is not noticed.
    """
    image = open_header(picture, limit_pixels)
    # Pillow's reader of TIFF gives the upright size already.
    try:
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
    except DAMAGED as error:
        raise _unreadable(picture.origin, error) from error
    return (image.width, image.height) if turned else (image.height, image.width)


def open_grey(picture: Picture, *, limit_pixels: int = LIMIT_PIXELS) -> Image.Image:
    """Open and decode a picture, and convert it to grey as `to_grey` does. Raises the DataErrors of `open_picture`."""
    return to_grey(_load(picture, limit_pixels), origin=picture.origin)


def open_loss_map(pixels: PixelInput, *, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """Open a loss map, convert it to grey, and resize it to the size that its geometry decides.

    Returns:
        A tensor [H, W] in float32 with values from 0 (black) to 1 (white).

    Raises:
        DataError: `open_picture` cannot open the picture, or the picture is too narrow for its geometry.
    """
    grey = open_grey(pixels.picture, limit_pixels=limit_pixels)
    return grey_values(_fit(grey, pixels))


def fit(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Resize a picture to the size that `geometry` decides. A picture that has this size already is returned itself."""
    return resize(image, geometry.fit(image.height, image.width))


def resize(image: Image.Image, size: Size) -> Image.Image:
    """Stretch a picture to `size` (height, width). A picture that has this size already is returned itself."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), resample=_FILTER)


def to_pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB or RGBA picture as a tensor [3 or 4, H, W] in float32, from -1 (black) to 1 (white).

    Raises:
        ValueError: The picture is neither RGB nor RGBA.
    """
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"expected an RGB or RGBA picture, got mode {image.mode}")
    values = np.array(image).astype(np.float32) / 255.0
    return 2.0 * torch.from_numpy(values.transpose(2, 0, 1)).contiguous() - 1.0


def grey_values(image: Image.Image) -> Tensor:
    """Return the values of a grey picture as a tensor [H, W] in float32, from 0 (black) to 1 (white).

    Raises:
        ValueError: The picture is not of Pillow's mode L (8-bit grey).
    """
    if image.mode != "L":
        raise ValueError(f"expected a grey picture, got mode {image.mode}")
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255.0)


def from_pixels(pixels: Tensor) -> Image.Image:
    """Make an RGB or RGBA picture from a tensor of pixels.

    Args:
        pixels: A tensor [3 or 4, H, W] from -1 (black) to 1 (white); values outside are clamped.

    Raises:
        NumericsError: A value of the pixels is not finite.
        ValueError: The tensor has another shape.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (3, 4):
        raise ValueError(f"expected pixels [3 or 4, H, W], got {tuple(pixels.shape)}")
    if not torch.isfinite(pixels).all():
        raise NumericsError(
            "the decoded picture has values that are not finite",
            "Lower the guidance scale, or compute in float32 or bfloat16 instead of float16.",
        )
    # In this order, and rounded at the end, as diffusers' VaeImageProcessor.postprocess does.
    values = (pixels * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().float().numpy()
    return Image.fromarray((values * 255).round().astype("uint8"))


def to_rgb(
    image: Image.Image, *, origin: str = "picture", background: tuple[int, int, int] | None = WHITE
) -> Image.Image:
    """Convert a picture of any mode to 8-bit sRGB, upright and without metadata, as `open_picture` does.

    Args:
        image: The picture, which Pillow has opened.
        origin: The name that messages use for the picture.
        background: The RGB colour that shows through where the picture is transparent. None keeps the transparency, and
            the result is RGBA.

    Raises:
        DataError: The picture cannot be decoded, or has 32-bit samples; the message names `origin`.
    """
    return _converted(image, origin, background, profiled=True)


def to_grey(image: Image.Image, *, origin: str = "picture") -> Image.Image:
    """Convert a picture of any mode to 8-bit grey (mode L), upright and without metadata, for a mask or a loss map.

    No colour profile is applied, because the values of such a picture are not colours. Transparent places become black.

    Args:
        image: The picture, which Pillow has opened.
        origin: The name that messages use for the picture.

    Raises:
        DataError: The picture cannot be decoded, or has 32-bit samples; the message names `origin`.
    """
    return _converted(image, origin, _BLACK, profiled=False).convert("L")


def _converted(
    image: Image.Image, origin: str, background: tuple[int, int, int] | None, *, profiled: bool
) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
        profile = image.info.get("icc_profile") if profiled else None
        alpha, image = _colours(image, origin)
        if profile:
            image = _to_srgb(image, profile, origin)
        image = image.convert("RGB")
        if background is None:
            image.putalpha(255 if alpha is None else alpha)
        elif alpha is not None:
            image = Image.composite(image, Image.new("RGB", image.size, background), alpha)
    except DAMAGED as error:
        raise _unreadable(origin, error) from error
    image.info = {}
    return image


def _load(picture: Picture, limit_pixels: int) -> Image.Image:
    """Open and decode a picture, and leave its mode as it is."""
    image = open_header(picture, limit_pixels)
    try:
        with _SILENCE:
            image.load()
    except DAMAGED as error:
        raise _unreadable(picture.origin, error) from error
    return image


def open_header(picture: Picture, limit_pixels: int = LIMIT_PIXELS) -> Image.Image:
    """Open a picture without decoding it. Its header and metadata are read, its size and number of frames are checked.

    Raises:
        DataError: Same as in `open_picture`, except that damage behind the picture's header is not noticed.
    """
    origin = picture.origin
    if isinstance(picture.source, Path):
        _check_file(picture.source, origin)
    try:
        # Pillow warns of large sizes and of odd metadata; neither keeps a picture from being used.
        with _SILENCE:
            image = Image.open(io.BytesIO(picture.read()), formats=FORMATS)
            _check_size(image.width, image.height, limit_pixels, origin)
            # Phones store JPEGs with a second picture (a preview, a gain map); the first one is the photograph.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise DataError(
                    f"{origin}: an animation or a document of several pages, expected one picture",
                    "Save the frame or page that is meant as a picture of its own.",
                )
    except UnidentifiedImageError as error:
        raise DataError(f"{origin}: not a picture of a known format", f"Formats read: {', '.join(FORMATS)}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{origin}: {error}", "Scale the picture down.") from error
    except DAMAGED as error:
        raise _unreadable(origin, error) from error
    return image


def _check_file(path: Path, origin: str) -> None:
    if path.exists() and not path.is_file():
        raise DataError(f"{origin}: {path} is not a file")
    if path.exists() and path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{origin}: {path} has over {_LARGEST_FILE} bytes, which no picture within the limits has")


def _check_size(width: int, height: int, limit: int, origin: str) -> None:
    if width * height > limit:
        raise DataError(
            f"{origin}: {width} x {height} pixels, more than the limit of {limit}",
            "Scale the picture down, or raise the limit if you trust the file.",
        )


def _colours(image: Image.Image, origin: str) -> tuple[Image.Image | None, Image.Image]:
    """Return alpha (mode L, or None) and the colours (L, RGB or another mode without alpha), 8 bits a sample."""
    if image.mode in _WITHOUT_RANGE:
        raise DataError(
            f"{origin}: 32-bit samples (mode {image.mode}), whose white is not known",
            "Save the picture with 8 or 16 bits per sample.",
        )
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        return with_alpha.getchannel("A"), with_alpha.convert("RGB")
    if image.mode in {"P", "1"}:
        return None, image.convert("RGB" if image.mode == "P" else "L")
    return None, image


def _from_16_bit(image: Image.Image) -> tuple[Image.Image | None, Image.Image]:
    values = np.array(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 257 * 255
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return None, grey
    return Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)), grey


_SPACES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK", "Lab ": "LAB"}


def _to_srgb(image: Image.Image, profile: bytes, origin: str) -> Image.Image:
    """Convert colours from the colour space of `profile` to sRGB; a profile that cannot be used is left out."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = _SPACES.get(source.profile.xcolor_space)
        if space == "L" and image.mode == "RGB" and _is_grey(image):
            image = image.convert("L")
        if space != image.mode:
            logger.warning("%s: its colour profile is for %s, not %s; left out", origin, space, image.mode)
            return image
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        # A profile that describes sRGB itself must not change values by rounding.
        if image.mode in {"L", "RGB"} and _changes_nothing(transform, image.mode):
            return image
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, *DAMAGED) as error:
        logger.warning("%s: its colour profile cannot be used (%s); left out", origin, error)
        return image
    assert converted is not None  # only in-place transforms return nothing
    return converted


def _is_grey(image: Image.Image) -> bool:
    values = np.asarray(image)
    return bool((values[..., 0] == values[..., 1]).all() and (values[..., 1] == values[..., 2]).all())


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform to sRGB moves no sample of a coarse cube of colours by more than 1 of 255."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None])
    else:
        cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)  # [9, 9, 9, 3]
        probe = Image.fromarray(cube.reshape(9, 81, 3))
    moved = ImageCms.applyTransform(probe, transform)
    before, after = np.asarray(probe.convert("RGB"), dtype=np.int16), np.asarray(moved, dtype=np.int16)
    return bool(np.abs(before - after).max() <= 1)


def _fit(image: Image.Image, pixels: PixelInput) -> Image.Image:
    try:
        return fit(image, pixels.geometry)
    except DataError as error:
        raise DataError(f"{pixels.picture.origin}: {error.message}", error.hint) from error


def _unreadable(origin: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{origin}: damaged or cut short, it cannot be decoded ({reason})", "Replace the file.")
