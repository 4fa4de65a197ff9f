"""The options of the quantiser `torchao`. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class TorchaoOptions:
    """The options of the quantiser `torchao`.

    Attributes:
        weights: The format that weights are kept in: whole numbers or floats of 8 bits, with a scale for each row.
        exclude: Names of linear layers that are not quantised, or patterns of such names, as in `fnmatch`.
    """

    weights: Literal["int8", "float8"] = attrs.field(
        default="int8", metadata={"help": "8-bit whole numbers or floats (e4m3): half of bfloat16"}
    )
    exclude: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "layers left as they are: names, or patterns such as transformer_blocks.0.*"}
    )
