"""Shards a denoiser's weights over processes, with `fully_shard` of torch (FSDP2), and gathers them for saving.

While the denoiser computes, the weights of a block are gathered when the block needs them. Checkpoints hold full
tensors, not shards, so that a sharded run can be resumed on another number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qframe.config.schema import Config
from qframe.errors import ConfigError
from qframe.interfaces import Denoiser


def check_sharding(config: Config, denoiser: type[Denoiser], *, quantised: bool) -> None:
    """Check that a sharded denoiser can be trained with these settings.

    Args:
        config: The settings of the run.
        denoiser: The class of the denoiser.
        quantised: Whether the denoiser's weights are quantised.

    Raises:
        ConfigError: It cannot; the message names the setting.
    """
    if quantised:
        raise ConfigError(
            "train.shard: the denoiser is quantised, and shards of quantised weights are no weights",
            "Leave denoiser.quantise out, or set train.shard to 'none'.",
        )
    if config.lora.dora and config.train.mode == "lora":
        raise ConfigError(
            "train.shard: DoRA needs whole rows of the frozen weights, and no process has them",
            "Set lora.dora to false, or train.shard to 'none'.",
        )
    if config.train.mode == "full" and config.train.optimizer != "adamw":
        raise ConfigError(
            f"train.shard: {config.train.optimizer!r} may look at whole matrices, and no process has them",
            "Set train.optimizer to 'adamw', or train.shard to 'none'.",
        )
    if config.train.mode == "full" and not denoiser.entered_by_forward:
        raise ConfigError(
            f"train.shard: {denoiser.__name__} enters its network past `forward`, where its outer weights are gathered",
            "Train a LoRA (train.mode = 'lora'), use another denoiser, or set train.shard to 'none'.",
        )


def shard(denoiser: Denoiser, trained: Iterable[nn.Parameter], device: torch.device) -> None:
    """Shard the weights of a denoiser over all processes. Every process must call it with the same denoiser.

    If a LoRA is trained, only the frozen weights of the blocks are sharded. The LoRA is not sharded, and
    `Processes.sum_gradients` sums its gradients. If all parameters are trained, all are sharded, and the backward pass
    sums their gradients over the processes.

    Args:
        denoiser: The denoiser, whose weights lie on the CPU.
        trained: The parameters that are trained: those of a LoRA, or all of the denoiser.
        device: The device to which this process's shards, and all that is not sharded, are moved.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # A denoiser leaves what its network returned as it is; torch warns everybody who might not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    module, kept = denoiser.module, set(trained)
    full = kept >= set(module.parameters())
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    ignored = set() if full else kept
    for block in getattr(module, denoiser.blocks):
        fully_shard(block, mesh=mesh, ignored_params=ignored, reshard_after_forward=True)
    inner = {parameter for block in getattr(module, denoiser.blocks) for parameter in block.parameters()}
    outer = set(module.parameters()) - inner
    if not full:
        for parameter in kept | outer:
            parameter.data = parameter.data.to(device)
    if denoiser.entered_by_forward:  # from there the next block is gathered while one computes
        fully_shard(module, mesh=mesh, ignored_params=ignored if full else kept | outer)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, buffer.to(device), persistent=name not in part._non_persistent_buffers_set)
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # sums: a sample's weight is in the loss already
            part.set_force_sum_reduction_for_comms(True)


def gathered(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes, and return the full tensor. Any other tensor is returned itself.

    Every process must call it for the same tensors in the same order, because the processes wait for each other.
    """
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def full_on_cpu(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors one after another, and return the full tensors on the CPU, by name.

    Every process must call it with the same tensors.

    Args:
        tensors: The tensors, sharded or not, by name.
        keep: Whether this process keeps the full tensors. If not, it only takes part in gathering, and returns an empty
            dictionary.
    """
    found = {}
    for name, tensor in tensors.items():
        full = gathered(tensor.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


def sharded_like(value: Any, parameter: Tensor) -> Any:
    """Return this process's shard of a full tensor, split over the processes in the same way as a parameter.

    If the parameter is not sharded, or `value` is not a tensor of the parameter's shape, `value` is returned itself.
    """
    if not hasattr(parameter, "full_tensor") or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def sharded_state(values: Any, parameter: Tensor) -> Any:
    """Shard the values that an optimizer keeps for a parameter, such as moments, in the same way as the parameter.

    If the parameter is not sharded, `values` is returned itself.
    """
    if not hasattr(parameter, "full_tensor"):
        return values
    return {name: sharded_like(value, parameter) for name, value in values.items()}


@torch.no_grad()
def load_full(network: nn.Module, values: Mapping[str, Tensor], *, keep: bool) -> None:
    """Gather tensors one after another, and copy the full tensors into the parameters of a network.

    Every process must call it with the same tensors.

    Args:
        network: The network, which is not sharded in a process that keeps the tensors.
        values: The tensors, sharded or not, by the name of the parameter.
        keep: Whether this process copies the full tensors into `network`. If not, it only takes part in gathering.
    """
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        found = gathered(value.detach())
        if keep:
            parameters[name].copy_(found)
