"""A plugin of the program: an encoder, a codec and a denoiser that need no weights. This module imports no torch.

Encoder and codec give random numbers of the right shapes, and the weights of the denoiser are drawn on the device. So a
training run of the published size needs neither 57 GB of files nor a network, and all the rest of it is qframe's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import attrs

from qframe import Component, hookimpl

NAME = "random-numbers"


@attrs.frozen(kw_only=True)
class EncoderOptions:
    """The options of the encoder.

    Attributes:
        tokens: How many tokens it gives for every prompt.
        width: The length of the vector of each token.
    """

    tokens: int = attrs.field(metadata={"help": "tokens of every prompt"})
    width: int = attrs.field(metadata={"help": "length of the vector of a token"})


@attrs.frozen(kw_only=True)
class DenoiserOptions:
    """The options of the denoiser.

    Attributes:
        device: Where the weights are made, also if they are quantised, which qframe otherwise does on the CPU.
    """

    device: str = attrs.field(metadata={"help": "device on which the weights are made"})


@attrs.define
class Clock:
    """Notes when steps end, while it is switched on.

    Attributes:
        steps: The steps before and at the end of what is measured, at which the device is waited for.
        ends: The seconds at which each step ended, on a clock that starts anywhere.
        peak: The most bytes of tensors that a CUDA device held between these steps.
    """

    steps: tuple[int, ...] = ()
    ends: dict[int, float] = attrs.field(factory=dict)
    peak: int | None = None


CLOCK = Clock()


@hookimpl
def qframe_components() -> list[Component]:
    """Return the three components."""
    parts = "tests.gpu.random_parts"
    options = "tests.gpu.stand_ins"
    return [
        Component(
            "encoder", NAME, f"{parts}:RandomEncoder", options=f"{options}:EncoderOptions", summary="random numbers"
        ),
        Component("codec", NAME, f"{parts}:RandomCodec", summary="random numbers"),
        Component(
            "denoiser", NAME, f"{parts}:RandomDenoiser", options=f"{options}:DenoiserOptions", summary="random weights"
        ),
    ]


@hookimpl
def qframe_step_end(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Note the time of a step."""
    if not CLOCK.steps:
        return
    if step in CLOCK.steps:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            CLOCK.peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()  # the peak of the measured steps, not that of making the weights
    CLOCK.ends[step] = time.perf_counter()
