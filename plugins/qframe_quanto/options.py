"""Settings of the quantiser `quanto`. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class QuantoOptions:
    """In which format weights are kept, and which layers are left out."""

    weights: Literal["qint8", "qfloat8", "qint4"] = attrs.field(
        default="qint8", metadata={"help": "8-bit whole numbers or floats: half of bfloat16; qint4: a quarter"}
    )
    exclude: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "layers left as they are: names, or patterns such as transformer_blocks.0.*"}
    )
