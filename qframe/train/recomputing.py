"""Turns on gradient checkpointing, which recomputes blocks in the backward pass, for a network in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError

_FUNCTION = "gradient_checkpointing_func"
"""The argument by which networks of diffusers take the function that recomputes a block."""


def recompute_blocks(module: nn.Module, train: TrainConfig, device: torch.device) -> None:
    """Turn on gradient checkpointing, if the settings ask for it.

    Args:
        module: The network.
        train: The settings of `[train]`.
        device: The device that computes. On a CPU the inputs of blocks are in host memory anyway.

    Raises:
        ConfigError: The network does not support what the settings ask for.
    """
    if not train.gradient_checkpointing:
        return
    enable = checkpointing_of(module, train)
    if train.offload_inputs and device.type != "cpu":
        enable(**{_FUNCTION: _offloading_inputs(device)})
    else:
        enable()


def checkpointing_of(module: nn.Module, train: TrainConfig) -> Callable[..., None]:
    """Return the method of a network that turns on gradient checkpointing as the settings ask for it.

    Raises:
        ConfigError: There is none, or it cannot have the inputs of blocks offloaded.
    """
    enable: Callable[..., None] | None = getattr(module, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ConfigError("train.gradient_checkpointing: this denoiser does not support it", "Set it to false.")
    if train.offload_inputs and _FUNCTION not in inspect.signature(enable).parameters:
        raise ConfigError(
            f"train.offload_inputs: the network of this denoiser takes no {_FUNCTION}, by which inputs are offloaded",
            "Set it to false.",
        )
    return enable


def _offloading_inputs(device: torch.device) -> Callable[..., Any]:
    """Return a function that recomputes a block, and keeps the inputs of the block in pinned host memory until then.

    While the block computes, checkpointing's own hooks decide what is kept, which is nothing. Those of `save_on_cpu`
    count only when checkpointing saves the inputs. Both copies are queued on the device; the host waits for neither.
    """

    def recomputed(block: nn.Module, *args: Any) -> Any:
        with save_on_cpu(pin_memory=True, device_type=device.type):
            return checkpoint(block.__call__, *args, use_reentrant=False)

    return recomputed
