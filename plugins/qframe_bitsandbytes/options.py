"""The options of the quantiser `bitsandbytes`. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class BitsAndBytesOptions:
    """The options of the quantiser `bitsandbytes`.

    Attributes:
        weights: The format that weights are kept in: the 16 levels of a normal distribution, or whole numbers of 8
            bits.
        double: Whether the scales of nf4 are quantised, too (QLoRA, arXiv 2305.14314, "double quantisation").
        exclude: Names of linear layers that are not quantised, or patterns of such names, as in `fnmatch`.
    """

    weights: Literal["nf4", "int8"] = attrs.field(
        default="nf4", metadata={"help": "nf4: a quarter of bfloat16; int8: half of it, and nearer"}
    )
    double: bool = attrs.field(
        default=False, metadata={"help": "whether the scales of nf4 are quantised, too: saves 0.37 bits per weight"}
    )
    exclude: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "layers left as they are: names, or patterns such as transformer_blocks.0.*"}
    )
