"""Settings of the recipes of `qwen-edit` and `qwen-edit-plus`. Imports no torch.

A value that is None is taken from the model's qframe.json, {"recipe": {...}}, or else is the published one.
"""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, in_, optional

from qframe.pictures.geometry import GeometrySettings


@attrs.frozen(kw_only=True)
class EditSettings(GeometrySettings):
    """Settings of `qwen-edit`.

    The published model has areas of 1048576 pixels, multiples of 32, side 1024, and needs references.
    """

    side: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "height and width of a picture without reference where the request names none"},
    )
    references: Literal["required", "optional"] | None = attrs.field(
        default=None,
        validator=optional(in_(("required", "optional"))),
        metadata={"help": "optional: records and requests without a picture are text to image"},
    )


@attrs.frozen(kw_only=True)
class EditPlusSettings(GeometrySettings):
    """Settings of `qwen-edit-plus`.

    The published model has areas of 1048576 pixels for the codec, of 147456 for the encoder, and multiples of 32. The
    settings of `GeometrySettings` are for targets, and for references on their way through the codec.
    """

    encoder_min_area: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "the encoder sees references of fewer pixels enlarged to it"},
    )
    encoder_max_area: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "the encoder sees references of more pixels reduced to it"},
    )
    max_references: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "more references are refused; 8 by default"},
    )
