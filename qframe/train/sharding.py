"""Weights shared out over processes, gathered block by block while they are needed: torch's `fully_shard` (FSDP2).

What is stored is whole: checkpoints of sharded runs are those of any other, and resume on any number of processes.
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
    """ConfigError for what cannot be trained on shards."""
    if quantised:
        raise ConfigError(
            "train.shard: the denoiser is quantised, and shares of quantised weights are no weights",
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
    """Share the weights of a denoiser on the CPU out over all processes, block by block, onto `device`.

    Of a frozen network only the blocks are shared out, and what is trained beside them (a LoRA) stays whole: its
    gradients are summed as ever. Of one that is trained, everything, and gradients are sums over processes.
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


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one every process must ask at the same time."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def whole_on_cpu(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of every tensor, gathered one after another; nothing unless `keep`: then this process only takes part."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


def shared_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor as `parameter` is shared out, if it has its shape; anything else as it is."""
    if not hasattr(parameter, "full_tensor") or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def shared_state(values: Any, parameter: Tensor) -> Any:
    """What an optimizer keeps of a parameter, shared out as the parameter is."""
    if not hasattr(parameter, "full_tensor"):
        return values
    return {name: shared_like(value, parameter) for name, value in values.items()}


@torch.no_grad()
def load_whole(network: nn.Module, values: Mapping[str, Tensor], *, keep: bool) -> None:
    """Fill the parameters of a network with all of `values`, one after another; unless `keep`, only take part."""
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        found = whole(value.detach())
        if keep:
            parameters[name].copy_(found)
