"""The floating point operations of training, and the rate at which a device can do them.

What one forward pass computes, the denoiser declares (`Denoiser.flops`). What an optimizer step computes follows here.
"""

from __future__ import annotations

from qframe.config.schema import TrainConfig
from qframe.interfaces import Flops

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
