"""Weights sharded over processes, and gathered block by block while they are needed: torch's `fully_shard` (FSDP2).

Checkpoints hold full tensors, not shards, so that a sharded run can be resumed on any number of processes.
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
    """ConfigError for settings that a sharded denoiser cannot be trained with."""
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
    """Shard the weights of a denoiser, which lies on the CPU, over all processes; this process's shards go to `device`.

    `trained` are the parameters that are trained. If they are a LoRA, only the frozen blocks are sharded; the LoRA is
    not, and its gradients are summed as without sharding. If they are all parameters, all are sharded, and the backward
    pass sums their gradients over the processes.
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
    """The full tensor of a sharded one; any other tensor as it is. All processes must gather at the same time."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def full_on_cpu(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The full tensors on the CPU, gathered one after another. If not `keep`, this process only takes part: nothing."""
    found = {}
    for name, tensor in tensors.items():
        full = gathered(tensor.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


def sharded_like(value: Any, parameter: Tensor) -> Any:
    """A full tensor of the parameter's shape, sharded as the parameter is. Any other value is returned as it is."""
    if not hasattr(parameter, "full_tensor") or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def sharded_state(values: Any, parameter: Tensor) -> Any:
    """The state that an optimizer keeps of a parameter, sharded as the parameter is."""
    if not hasattr(parameter, "full_tensor"):
        return values
    return {name: sharded_like(value, parameter) for name, value in values.items()}


@torch.no_grad()
def load_full(network: nn.Module, values: Mapping[str, Tensor], *, keep: bool) -> None:
    """Fill the parameters of a network with the full tensors of `values`. If not `keep`, only help gathering."""
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        found = gathered(value.detach())
        if keep:
            parameters[name].copy_(found)
