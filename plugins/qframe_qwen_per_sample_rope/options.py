"""Settings of the denoiser `qwen-per-sample-rope`. Imports no torch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class PerSampleRopeOptions:
    """The settings of the denoiser."""

    compile: bool = attrs.field(
        default=False,
        metadata={"help": "torch.compile of the repeated block, once for all mixtures: minutes at first"},
    )
