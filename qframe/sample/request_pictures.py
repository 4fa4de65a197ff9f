"""The pictures of a request: in whatever form they are given, how large their results are, and which go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from qframe.compose.mixing import as_request
from qframe.errors import ConfigError, DataError
from qframe.interfaces import Request
from qframe.pictures.geometry import Geometry, Size
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import open_grey, open_picture, to_grey, to_rgb
from qframe.sample.planning import broadcast, select

PictureLike = Image.Image | Picture | Path | str | np.ndarray[Any, Any] | Tensor
"""A picture as `pipe(...)` takes it; a string is a path."""

R = TypeVar("R", bound=Request)


def open_pictures(values: Sequence[PictureLike], prompts: int, name: str = "image") -> list[Image.Image]:
    """RGB pictures, one for all prompts or one per prompt. ConfigError otherwise; DataError names a bad picture."""
    broadcast(values, prompts, name)
    return [load_picture(value, name if len(values) == 1 else f"{name} {i}") for i, value in enumerate(values)]


def output_sizes(request: Request, images: Sequence[Image.Image], geometry: Geometry) -> list[Size]:
    """Per picture, the size of its result: what the request names, and beside that the picture in its geometry."""
    fitted = [geometry.fit(image.height, image.width) for image in images]
    return [(request.height or height, request.width or width) for height, width in fitted]


def one_size(sizes: Sequence[Size]) -> Size:
    """The size that all have. ConfigError if there are several."""
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"the pictures lead to outputs of different sizes: {sorted(set(sizes))}",
            "Plan them apart (Recipe.split), or name height and width.",
        )
    return sizes[0]


def split_by_size(
    request: R, sizes: Sequence[Size], **pictures: Sequence[Any]
) -> list[tuple[tuple[int, ...], Request]]:
    """As `Recipe.split`: one part per size. sizes: one, or one per prompt.

    pictures: values for fields of the request, one for all prompts or one per prompt. ConfigError: latents, which
    have one size, for several.
    """
    times, count = request.num_images_per_prompt, request.prompt_count
    if len(set(sizes)) == 1:
        return [(tuple(range(count * times)), as_request(type(request), request, **pictures))]
    if request.latents is not None:
        raise ConfigError(
            f"latents are of one size, and the pictures lead to outputs of several: {sorted(set(sizes))}",
            "Name height and width, or call once per size.",
        )
    alike: dict[Size, list[int]] = defaultdict(list)
    for prompt, size in enumerate(sizes):
        alike[size].append(prompt)
    parts: list[tuple[tuple[int, ...], Request]] = []
    for prompts in alike.values():
        places = tuple(prompt * times + i for prompt in prompts for i in range(times))
        own = {
            name: values if len(values) == 1 else [values[prompt] for prompt in prompts]
            for name, values in pictures.items()
        }
        parts.append((places, as_request(type(request), select(request, prompts), **own)))
    return parts


def as_pictures(value: Any) -> tuple[PictureLike, ...] | None:
    """A request's pictures, given as one, as a list, or as an array or tensor [B, ...]."""
    if value is None or isinstance(value, tuple):
        return value
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 4:
        return tuple(value)
    one = isinstance(value, str | Path | Image.Image | Picture | Tensor | np.ndarray)
    return (value,) if one or not isinstance(value, Iterable) else tuple(value)


def load_picture(value: PictureLike, origin: str = "image") -> Image.Image:
    """The RGB picture of a value that a user may give; policy of `qframe.pictures.pixels`.

    Arrays are [H, W, 3] or [H, W], tensors [3, H, W]; bool, uint8, or floating point in [0, 1], as diffusers takes
    them. DataError names `origin`.
    """
    if isinstance(value, Picture | str | Path):
        return open_picture(_picture(value))
    return to_rgb(_image(value, origin), origin=origin)


def load_grey(value: PictureLike, origin: str = "image") -> Image.Image:
    """As `load_picture`, of a picture whose values are no colours: mode L; where it is transparent it is black."""
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
