"""Decides the size to which a picture is resized before a model sees it.

Training, cache and sampling all use this module, and therefore a model is used with the same sizes that it was trained
with. Imports neither torch nor Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs
from attrs.validators import ge, optional

from qframe.errors import DataError

Size = tuple[int, int]
"""Height and width, in pixels."""


def _positive(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, got {value}")


def _ascending(areas: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(areas)))


@attrs.frozen
class Geometry:
    """The rule by which pictures are resized to sizes that a model can take.

    The new size keeps the picture's aspect ratio, except that each side is rounded to the nearest multiple of
    `multiple` pixels. Nothing is cropped: the picture is stretched to the rounded size. If min_area == max_area, the
    sizes are those of `calculate_dimensions(area, ratio)` of diffusers' Qwen edit pipelines.

    Attributes:
        min_area: A picture with a smaller area is enlarged to about this area, in pixels.
        max_area: A picture with a larger area is reduced to about this area, in pixels.
        multiple: Height and width become multiples of this many pixels.
        areas: If not empty, each picture is resized to about one of these areas (in pixels), the one that it has to be
            scaled least for, and min_area and max_area are ignored.
    """

    min_area: int = attrs.field(validator=_positive)
    max_area: int = attrs.field(validator=_positive)
    multiple: int = attrs.field(default=32, validator=_positive)
    areas: tuple[int, ...] = attrs.field(default=(), converter=_ascending)

    def __attrs_post_init__(self) -> None:
        if any(area < 1 for area in self.areas):
            raise ValueError(f"areas must be at least 1, got {self.areas}")
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} is larger than max_area {self.max_area}")

    def fit(self, height: int, width: int) -> Size:
        """Return the (height, width) to which a picture of `height` x `width` pixels is resized.

        Raises:
            DataError: The picture has no pixels, or is so narrow that a side would be rounded to 0.
        """
        if height < 1 or width < 1:
            raise DataError(f"a picture of {width} x {height} pixels has no area")
        area = self._area(height * width)
        # Width first and height from it, as diffusers does: the order decides how a tie rounds.
        ratio = width / height
        new_width = math.sqrt(area * ratio)
        new_height = new_width / ratio
        fitted = (self._round(new_height), self._round(new_width))
        if 0 in fitted:
            raise DataError(
                f"a picture of {width} x {height} pixels is too narrow: at an area of {area} pixels a side "
                f"would be under half of {self.multiple} pixels",
                "Crop the picture to a less extreme aspect ratio.",
            )
        return fitted

    def _area(self, own: int) -> int:
        if self.areas:
            return min(self.areas, key=lambda area: max(area / own, own / area))
        return min(max(own, self.min_area), self.max_area)

    def _round(self, side: float) -> int:
        return round(side / self.multiple) * self.multiple


@attrs.frozen(kw_only=True)
class GeometrySettings:
    """The settings with which a user can change a recipe's geometry.

    Each attribute sets the attribute of `Geometry` of the same name. An attribute that is None leaves the recipe's
    default; `qframe.sample.recipe_settings.with_defaults` fills it in.
    """

    min_area: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "pictures of fewer pixels are enlarged to it"},
    )
    max_area: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "pictures of more pixels are reduced to it"},
    )
    areas: tuple[int, ...] | None = attrs.field(
        default=None,
        metadata={"help": "in place of both: each picture is brought to the nearest of these areas, in pixels"},
    )
    multiple: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "sides are rounded to multiples of it"},
    )
