"""Settings of the sampler: keys of the table [sampler.options]. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class AdamsBashforthOptions:
    """Settings of the sampler `ab2`."""

    order: Literal[1, 2] = attrs.field(default=2, metadata={"help": "1 forgets the last velocity, and is Euler"})
