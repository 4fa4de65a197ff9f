"""The settings (`recipe`) of the families `qwen-edit` and `qwen-edit-plus`. Imports no torch.

A setting that is None is taken from the table "recipe" in the model folder's qframe.json; if that table does not have
it either, it is that of the published model.
"""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, in_, optional

from qframe.pictures.geometry import GeometrySettings


@attrs.frozen(kw_only=True)
class EditSettings(GeometrySettings):
    """The settings (`recipe`) of the family `qwen-edit`.

    The published model has areas of 1048576 pixels, sides that are multiples of 32, and a side of 1024 pixels, and it
    requires references.

    Attributes:
        side: Height and width in pixels of a result if there is no reference and the request names no size.
        references: Whether every record and request must have a picture to change. If "optional", those without a
            picture are text to image.
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
    """The settings (`recipe`) of the family `qwen-edit-plus`.

    The settings inherited from `GeometrySettings` decide the size of targets, and of references for the codec (the
    VAE). The published model has areas of 1048576 pixels for the codec and of 147456 pixels for the encoder, and sides
    that are multiples of 32.

    Attributes:
        encoder_min_area: References with fewer pixels are enlarged to this area for the encoder.
        encoder_max_area: References with more pixels are reduced to this area for the encoder.
        max_references: The largest number of references that a record, or a prompt of a request, may have.
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
