"""The precision of training: the context in which every forward pass of a training run computes, of samples too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

from qframe.config.schema import TrainConfig


def in_precision(device: torch.device, train: TrainConfig) -> Callable[[], AbstractContextManager[None]]:
    """Return a function that makes the context in which the denoiser of a training run computes.

    With `train.precision` "bfloat16" it is autocast: matrix products are computed in bfloat16, whatever the dtype of
    the weights is. Steps, validation losses and samples of a run all use this context, so that they show the same
    network. Every forward pass enters a context of its own, because autocast keeps its copies of trained weights until
    the context ends, and the weights change in between.

    Args:
        device: Where the denoiser computes.
        train: The settings of `[train]`.
    """
    return partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=train.precision == "bfloat16")
