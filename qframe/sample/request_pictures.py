"""Opens the pictures of a request, which may be given in many forms, and decides how large the results are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from qframe.errors import ConfigError, DataError
from qframe.interfaces import Request
from qframe.pictures.geometry import Geometry, Size
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import WHITE, open_grey, open_picture, to_grey, to_rgb
from qframe.sample.per_prompt import broadcast

PictureLike = Image.Image | Picture | Path | str | np.ndarray[Any, Any] | Tensor
"""A picture as `pipe(...)` takes it; a string is a path."""


def open_pictures(
    values: Sequence[PictureLike], prompts: int, name: str = "image", *, channels: int = 3
) -> list[Image.Image]:
    """Open the pictures of a request.

    Args:
        values: One picture for all prompts, or one per prompt.
        prompts: The number of prompts.
        name: The name by which messages call a picture that has no file name.
        channels: `CodecSpec.pixel_channels`. With 3 the pictures are RGB, white where they are transparent; with 4
            RGBA.

    Raises:
        ConfigError: There are neither 1 nor `prompts` pictures.
        DataError: A picture cannot be used; the message names the picture.
    """
    broadcast(values, prompts, name)
    names = [name if len(values) == 1 else f"{name} {i}" for i in range(len(values))]
    return [load_picture(value, own, channels=channels) for value, own in zip(values, names, strict=True)]


def output_sizes(request: Request, images: Sequence[Image.Image], geometry: Geometry) -> list[Size]:
    """Return the size of the result for each picture.

    Height and width are the request's. One that the request leaves open is what the geometry gives the picture.
    """
    fitted = [geometry.fit(image.height, image.width) for image in images]
    return [(request.height or height, request.width or width) for height, width in fitted]


def one_size(sizes: Sequence[Size]) -> Size:
    """Return the one size that the results of a request have.

    Raises:
        ConfigError: There are several sizes.
    """
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"the pictures lead to outputs of different sizes: {sorted(set(sizes))}",
            "Name height and width, or ask for those of one size at a time.",
        )
    return sizes[0]


def as_pictures(value: PictureLike | Sequence[PictureLike] | None) -> tuple[PictureLike, ...] | None:
    """Return a request's pictures as a tuple.

    They are given as one picture, as an array or tensor [B, ...], or as a list of any of these.
    """
    if value is None:
        return None
    one = isinstance(value, str | Path | Image.Image | Picture | Tensor | np.ndarray)
    found: list[PictureLike] = []
    for item in [value] if one or not isinstance(value, Iterable) else value:
        found += list(item) if isinstance(item, Tensor | np.ndarray) and item.ndim == 4 else [item]
    return tuple(found)


def given_latents(values: Sequence[PictureLike], channels: int) -> list[Tensor] | None:
    """Return the values as latents [Z, h, w] if all of them are tensors of that shape; None if they are pictures.

    Args:
        values: What a request gives as its pictures.
        channels: `CodecSpec.channels`, Z. Tensors of 1 or 3 channels are pictures in any case.
    """
    if channels in (1, 3) or not all(isinstance(v, Tensor) and v.ndim == 3 and len(v) == channels for v in values):
        return None
    return [value for value in values if isinstance(value, Tensor)] or None


def load_picture(value: PictureLike, origin: str = "image", *, channels: int = 3) -> Image.Image:
    """Open the picture of a value that a user may give, by the rules of `qframe.pictures.pixels`.

    Args:
        value: A path, a PIL picture, an array [H, W, 3], [H, W] or [1, H, W], or a tensor [3, H, W], [1, H, W] or
            [H, W]. Arrays and tensors are bool, uint8, or floating point in [0, 1], as diffusers takes them. Where 4
            channels are asked for, they may have 4.
        origin: What messages call the picture.
        channels: Same as in `open_pictures`.

    Raises:
        DataError: The picture cannot be used.
    """
    if isinstance(value, Picture | str | Path):
        return open_picture(_picture(value), background=WHITE if channels == 3 else None)
    image = _image(value, origin, (1, 3, channels))
    return to_rgb(image, origin=origin, background=WHITE if channels == 3 else None)


def load_grey(value: PictureLike, origin: str = "image") -> Image.Image:
    """Open a picture whose values are no colours, such as a mask: mode L, black where it is transparent.

    Otherwise like `load_picture`.
    """
    if isinstance(value, Picture | str | Path):
        return open_grey(_picture(value))
    return to_grey(_image(value, origin, (1, 3)), origin=origin)


def _picture(value: Picture | str | Path) -> Picture:
    return value if isinstance(value, Picture) else Picture(str(value), Path(value))


def _image(value: Image.Image | np.ndarray[Any, Any] | Tensor, origin: str, channels: tuple[int, ...]) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Tensor):
        array = (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
        return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, origin, channels)
    return _from_array(value, origin, channels)


def _from_array(values: Any, origin: str, channels: tuple[int, ...]) -> Image.Image:
    if not isinstance(values, np.ndarray):
        raise DataError(
            f"{origin}: a {type(values).__name__} is no picture", "Give a path, a PIL picture, an array or a tensor."
        )
    if values.ndim == 3 and values.shape[0] == 1 and values.shape[-1] not in channels:
        values = values[0]  # [1, H, W], as masks often come
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in channels) or 0 in values.shape:
        raise DataError(
            f"{origin}: expected an array [H, W, 3] or a tensor [3, H, W], got shape {values.shape}",
            "Bring it into one of these shapes, or give a PIL picture.",
        )
    if values.dtype == np.bool_:
        values = values.astype(np.float32)
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating) or not (values.min() >= 0 and values.max() <= 1):
            raise DataError(
                f"{origin}: expected uint8, or floating point in [0, 1], got {values.dtype}",
                "Scale it to that range.",
            )
        values = (values * 255).round().astype(np.uint8)
    image = Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values)
    return image if image.mode == "RGBA" else image.convert("RGB")
