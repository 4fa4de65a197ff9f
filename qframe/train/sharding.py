"""Shards a denoiser's weights over processes, with `fully_shard` of torch (FSDP2), and gathers them for saving.

While the denoiser computes, the weights of a block are gathered when the block needs them. Checkpoints hold full
tensors, not shards, so that a sharded run can be resumed on another number of processes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import attrs
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


@attrs.frozen
class Box:
    """A part of a tensor: a range of each of its dimensions.

    Attributes:
        begin: The place of the part's first element.
        shape: The shape of the part.
    """

    begin: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def end(self) -> tuple[int, ...]:
        """The place after the part's last element, in each dimension."""
        return tuple(begin + size for begin, size in zip(self.begin, self.shape, strict=True))

    @property
    def elements(self) -> int:
        """How many elements the part has."""
        return math.prod(self.shape)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its shard of the tensor."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: its shard, or the tensor itself if that is not sharded."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[operator]
    return found.detach()


def local_box(tensor: Tensor) -> Box:
    """Return which part of the full tensor this process holds; of a tensor that is not sharded, all of it."""
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Box((0,) * len(shape), shape)
    (placement,) = tensor.placements  # type: ignore[attr-defined]
    assert placement.is_shard(0), f"{placement}: `shard` splits the first dimension"
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    rows = -(-shape[0] // mesh.size())  # as torch.chunk: equal numbers of rows, and fewer or none at the end
    begin = min(rows * mesh.get_local_rank(), shape[0])
    local = tuple(local_part(tensor).shape)
    assert local == (min(begin + rows, shape[0]) - begin, *shape[1:])
    return Box((begin, *(0,) * (len(shape) - 1)), local)


def from_local(local: Tensor, like: Tensor) -> Tensor:
    """Return the sharded tensor of which this process holds `local`, split over the processes as `like` is split.

    No process waits for another one.
    """
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    mesh = like.device_mesh
    return DTensor.from_local(
        local.to(mesh.device_type), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
