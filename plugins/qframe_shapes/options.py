"""Settings of the embedded data set. Imports no torch."""

from typing import Literal

import attrs
from attrs.validators import and_, ge, le


@attrs.frozen(kw_only=True)
class ShapesOptions:
    """Which records the embedded data set holds."""

    mixture: Literal["dot", "purple", "purple-captions", "base"] = attrs.field(
        default="dot",
        metadata={
            "help": "dot, purple, purple-captions (text to image): what the base model never saw, with replay; "
            "base: what it was built from"
        },
    )
    count: int = attrs.field(default=400, validator=ge(1), metadata={"help": "training records"})
    replay: float = attrs.field(
        default=0.6, validator=and_(ge(0.0), le(1.0)), metadata={"help": "share of operations known already"}
    )
    validation: int = attrs.field(default=64, validator=ge(0), metadata={"help": "records kept from training"})
    seed: int = attrs.field(default=0, validator=ge(0), metadata={"help": "seed of the records"})
