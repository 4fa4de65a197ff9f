"""Settings of the recipe of `qwen-edit`. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, in_, optional


@attrs.frozen(kw_only=True)
class EditSettings:
    """None takes the value from the checkpoint's qframe.json, {"recipe": {...}}, else the published one."""

    min_area: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "pictures of fewer pixels are enlarged to it; published: 1048576"},
    )
    max_area: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "pictures of more pixels are reduced to it; published: 1048576"},
    )
    multiple: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "sides are rounded to multiples of it; published: 32"},
    )
    side: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "height and width of a picture without reference where the request names none"},
    )
    references: Literal["required", "optional"] | None = attrs.field(
        default=None,
        validator=optional(in_(("required", "optional"))),
        metadata={"help": "optional: records and requests without a picture are text to image; published: required"},
    )
