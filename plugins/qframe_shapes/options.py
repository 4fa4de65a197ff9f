"""The options of the embedded data set. This module imports no torch."""

from typing import Literal

import attrs
from attrs.validators import and_, ge, le


@attrs.frozen(kw_only=True)
class ShapesOptions:
    """The options of the data source "shapes", which decide the records of the embedded data set.

    Attributes:
        mixture: What the records teach. "dot", "purple" and "purple-captions" (text to image) teach something that the
            base model never saw; "base" is the mixture that the base model was trained on.
        count: Number of training records.
        replay: Fraction of the records, from 0 to 1, that repeat operations which the base model knows already; not
            used by the mixture "base".
        validation: Number of records that are held out from training.
        seed: Seed of the records.
    """

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
