"""The options of the quantiser `quanto`. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class QuantoOptions:
    """The options of the quantiser `quanto`.

    Attributes:
        weights: The format that weights are kept in: whole numbers of 8 or 4 bits, or floats of 8 bits.
        exclude: Names of linear layers that are not quantised, or patterns of such names, as in `fnmatch`.
    """

    weights: Literal["qint8", "qfloat8", "qint4"] = attrs.field(
        default="qint8", metadata={"help": "8-bit whole numbers or floats: half of bfloat16; qint4: a quarter"}
    )
    exclude: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "layers left as they are: names, or patterns such as transformer_blocks.0.*"}
    )
