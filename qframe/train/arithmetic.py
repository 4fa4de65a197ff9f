"""The floating point operations of training, and the rate at which a device can do them.

What one forward pass computes, the denoiser declares (`Denoiser.flops`). What an optimizer step computes follows here.
"""

from __future__ import annotations

import time

import torch

from qframe.config.schema import TrainConfig
from qframe.interfaces import Denoiser, Flops

_LORA = 1
_FULL = 2
"""Products of a backward pass for each product with weights in the forward pass. The gradient of the input is one; the
gradient of the weights is another one, which frozen weights do not need. LoRAs themselves are left out: at rank 16 they
are about 1 % of a step of Qwen-Image."""

_ATTENTION = 2
"""Products of a backward pass for each product in the attention of the forward pass: both factors need a gradient. What
flash attention recomputes in its backward pass is not counted, as is the custom."""


def step_flops(forward: Flops, config: TrainConfig) -> int:
    """Return the operations of a forward pass and its backward pass.

    With gradient checkpointing the forward pass is computed once more. The figures are those of a network whose blocks
    are all recomputed; its first and last layers, which are not, are a small part of it.

    Args:
        forward: The operations of the forward pass.
        config: The settings of `[train]`, which say what is trained, and whether activations are recomputed.
    """
    again = 1 if config.gradient_checkpointing else 0
    backward = _FULL if config.mode == "full" else _LORA
    return (1 + again + backward) * forward.linear + (1 + again + _ATTENTION) * forward.attention


_SECONDS = 0.1
_SMALLEST, _LARGEST = 256, 8192


def measured_rate(device: torch.device, precision: str) -> float:
    """Multiply matrices on a device, and return how many floating point operations it does in a second.

    The matrices are doubled in size while a product takes less than a 32nd of `_SECONDS`, because small ones do not
    keep a GPU busy. No generator that training uses is drawn from.

    Args:
        device: The device.
        precision: `train.precision`, the dtype of the matrices by name.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    block = torch.randn(_SMALLEST, _SMALLEST, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best, size, until = 0.0, _SMALLEST, time.monotonic() + _SECONDS
    while True:
        matrix = block.repeat(size // _SMALLEST, size // _SMALLEST)
        torch.mm(matrix, matrix)  # the first one chooses a kernel
        _wait(matrix)
        began = time.monotonic()
        _wait(torch.mm(matrix, matrix))
        took = max(time.monotonic() - began, 1e-9)
        best = max(best, 2 * size**3 / took)
        if time.monotonic() > until:
            return best
        if took < _SECONDS / 32 and size < _LARGEST:
            size *= 2


def declares_flops(denoiser: Denoiser) -> bool:
    """Whether a denoiser declares the operations of its forward passes."""
    return denoiser.flops([((1, 1, 1),)], [1]) is not None


def _wait(made: torch.Tensor) -> None:
    """Wait until the device has computed a tensor."""
    made[0, 0].item()
