"""The options of this plugin's components, and the settings of the recipe of `qwen-image`. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import and_, ge, in_, le, optional

from qframe.pictures.geometry import GeometrySettings


@attrs.frozen(kw_only=True)
class QwenVLOptions:
    """The options of the encoder `qwen2.5-vl`; the help text of each explains it."""

    template: Literal["auto", "text", "edit", "edit-plus"] = attrs.field(
        default="auto",
        validator=in_(("auto", "text", "edit", "edit-plus")),
        metadata={
            "help": "system prompt: text (no picture), edit (one picture), edit-plus (pictures, numbered); "
            "auto: edit where there is a picture, else text"
        },
    )
    positions: Literal["mrope", "upstream"] = attrs.field(
        default="mrope",
        validator=in_(("mrope", "upstream")),
        metadata={"help": "upstream: one-dimensional image positions, as diffusers' edit pipelines have them today"},
    )
    special_tokens: Literal["refuse", "literal"] = attrs.field(
        default="refuse",
        validator=in_(("refuse", "literal")),
        metadata={"help": "a prompt holding e.g. <|im_end|>: refused, or read as plain letters"},
    )
    max_length: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(1), le(1024))),
        metadata={"help": "tokens kept of a prompt, pictures not counted; by default 512 without pictures, all with"},
    )


@attrs.frozen(kw_only=True)
class QwenCodecOptions:
    """The options of the codec `qwen-vae`; the help text of each explains it."""

    tiling: bool = attrs.field(
        default=False,
        metadata={"help": "pictures above 256 pixels are coded in overlapping tiles: less memory, small differences"},
    )
    slicing: bool = attrs.field(
        default=False, metadata={"help": "the pictures of a batch are coded one at a time: less memory"}
    )


@attrs.frozen(kw_only=True)
class QwenDenoiserOptions:
    """The options of the denoiser `qwen-image`; the help text of each explains it."""

    attention_backend: str | None = attrs.field(
        default=None,
        metadata={"help": "diffusers' name of an installed attention kernel; most take prompts of one length only"},
    )
    compile: bool = attrs.field(
        default=False, metadata={"help": "torch.compile of the repeated block: minutes at first, faster steps then"}
    )


@attrs.frozen(kw_only=True)
class TextToImageSettings(GeometrySettings):
    """The settings (`recipe`) of the family `qwen-image`.

    A setting that is None is taken from the table "recipe" in the model folder's qframe.json; if that table does not
    have it either, it is that of the published model: areas of 1048576 pixels, sides that are multiples of 32, and a
    side of 1024 pixels.

    Attributes:
        side: Height and width in pixels of a picture if the request names none.
    """

    side: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "height and width of a picture where the request names none"},
    )
