"""Computes without gradients in a way that leaves tensors which training may use afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_gradients() -> Iterator[None]:
    """Return a context, also usable as a decorator, in which torch records nothing for a backward pass.

    Tensors made in it are ordinary ones, even if a caller has entered `torch.inference_mode()`. Networks keep tensors
    from one forward pass to the next: position tables that were moved to the device, and weights that offloading moved.
    A backward pass refuses such a tensor if it was made in inference mode.
    """
    with torch.inference_mode(False), torch.no_grad():  # in this order: leaving inference mode switches gradients on
        yield
