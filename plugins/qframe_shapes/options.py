"""The settings of the embedded data set. This module imports no torch."""

from typing import Literal

import attrs
from attrs.validators import and_, ge, le


@attrs.frozen(kw_only=True)
class ShapesOptions:
    """The settings that decide which records the embedded data set has; the help texts explain each of them."""

    mixture: Literal["dot", "purple", "purple-captions", "base"] = attrs.field(
        default="dot",
        metadata={
            "help": "dot, purple or purple-captions (text to image): something that the base model never saw, with "
            "replay; base: the mixture that the base model was trained on"
        },
    )
    count: int = attrs.field(default=400, validator=ge(1), metadata={"help": "number of training records"})
    replay: float = attrs.field(
        default=0.6,
        validator=and_(ge(0.0), le(1.0)),
        metadata={"help": "fraction of records with operations that the base model knows already"},
    )
    validation: int = attrs.field(
        default=64, validator=ge(0), metadata={"help": "number of records held out from training"}
    )
    seed: int = attrs.field(default=0, validator=ge(0), metadata={"help": "seed of the records"})
