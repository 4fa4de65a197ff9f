"""The pictures of a request, in whatever form they are given: how they are opened, and how large their results are."""

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
from qframe.pictures.pixels import open_grey, open_picture, to_grey, to_rgb
from qframe.sample.per_prompt import broadcast

PictureLike = Image.Image | Picture | Path | str | np.ndarray[Any, Any] | Tensor
"""A picture as `pipe(...)` takes it; a string is a path."""


def open_pictures(values: Sequence[PictureLike], prompts: int, name: str = "image") -> list[Image.Image]:
    """Open the RGB pictures of a request.

    Args:
        values: One picture for all prompts, or one per prompt.
        prompts: The number of prompts.
        name: What messages call a picture that has no name of its own.

    Raises:
        ConfigError: There is another number of pictures.
        DataError: A picture cannot be used; the message names it.
    """
    broadcast(values, prompts, name)
    return [load_picture(value, name if len(values) == 1 else f"{name} {i}") for i, value in enumerate(values)]


def output_sizes(request: Request, images: Sequence[Image.Image], geometry: Geometry) -> list[Size]:
    """The size of the result of each picture: the picture's in this geometry, or what the request names instead."""
    fitted = [geometry.fit(image.height, image.width) for image in images]
    return [(request.height or height, request.width or width) for height, width in fitted]


def one_size(sizes: Sequence[Size]) -> Size:
    """The size that all have.

    Raises:
        ConfigError: There are several sizes.
    """
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"the pictures lead to outputs of different sizes: {sorted(set(sizes))}",
            "Name height and width, or ask for those of one size at a time.",
        )
    return sizes[0]


def as_pictures(value: Any) -> tuple[PictureLike, ...] | None:
    """A request's pictures as a tuple. They are given as one picture, as a list, or as an array or tensor [B, ...]."""
    if value is None or isinstance(value, tuple):
        return value
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 4:
        return tuple(value)
    one = isinstance(value, str | Path | Image.Image | Picture | Tensor | np.ndarray)
    return (value,) if one or not isinstance(value, Iterable) else tuple(value)


def load_picture(value: PictureLike, origin: str = "image") -> Image.Image:
    """Open the RGB picture of a value that a user may give, by the rules of `qframe.pictures.pixels`.

    Args:
        value: A path, a PIL picture, an array [H, W, 3] or [H, W], or a tensor [3, H, W]. Arrays and tensors are bool,
            uint8, or floating point in [0, 1], as diffusers takes them.
        origin: What messages call the picture.

    Raises:
        DataError: The picture cannot be used.
    """
    if isinstance(value, Picture | str | Path):
        return open_picture(_picture(value))
    return to_rgb(_image(value, origin), origin=origin)


def load_grey(value: PictureLike, origin: str = "image") -> Image.Image:
    """Open a picture whose values are no colours, such as a mask: mode L, black where it is transparent.

    Otherwise like `load_picture`.
    """
    if isinstance(value, Picture | str | Path):
        return open_grey(_picture(value))
    return to_grey(_image(value, origin), origin=origin)


def _picture(value: Picture | str | Path) -> Picture:
    return value if isinstance(value, Picture) else Picture(str(value), Path(value))


def _image(value: Image.Image | np.ndarray[Any, Any] | Tensor, origin: str) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Tensor):
        array = (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
        return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, origin)
    return _from_array(value, origin)


def _from_array(values: Any, origin: str) -> Image.Image:
    if not isinstance(values, np.ndarray):
        raise DataError(
            f"{origin}: a {type(values).__name__} is no picture", "Give a path, a PIL picture, an array or a tensor."
        )
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (1, 3)) or 0 in values.shape:
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
    return Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values).convert("RGB")
