"""Shards a denoiser's weights over processes, with `fully_shard` of torch (FSDP2), and gathers them for saving.

While the denoiser computes, the weights of a block are gathered when the block needs them. Checkpoints hold
slices that any number of processes can read (`qframe.train.slices`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qframe.config.schema import Config, Precision
from qframe.errors import ConfigError
from qframe.interfaces import Denoiser


def check_sharding(config: Config, denoiser: type[Denoiser]) -> None:
    """Check that a sharded denoiser can be trained with these settings.

    Args:
        config: The settings of the run.
        denoiser: The class of the denoiser.

    Raises:
        ConfigError: It cannot; the message names the setting.
    """
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
    if config.train.mode == "full" and not entrances(denoiser):
        raise ConfigError(
            f"train.shard: {denoiser.__name__} does not say by which methods it enters its network, and "
            "there its outer weights are gathered",
            "Train a LoRA (train.mode = 'lora'), use another denoiser, or set train.shard to 'none'.",
        )


def shard(
    denoiser: Denoiser,
    adapter: Iterable[nn.Parameter],
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    precision: Precision = "float32",
) -> None:
    """Shard the weights of a denoiser over all processes. Every process must call it with the same denoiser.

    If a LoRA is trained, only the frozen weights of the blocks are sharded. The LoRA is not sharded, and
    `Processes.sum_gradients` sums its gradients. If all parameters are trained, all are sharded, in float32, and the
    backward pass sums their gradients over the processes.

    Blocks are converted and sharded one after another. If the weights are mapped from their files, a process therefore
    never has more than its shards and one whole block in its memory. Of quantised weights, the plain tensors inside are
    sharded, whatever they mean, and a layer builds its weight again from what was gathered.

    Args:
        denoiser: The denoiser, whose weights lie on the CPU.
        adapter: The parameters of the LoRA that is trained, and of frozen ones; empty if all of the denoiser's
            parameters are trained.
        device: The device to which this process's shards, and all that is not sharded, are moved.
        dtype: The dtype that the frozen weights get, or through which trained ones become float32. By default they keep
            the dtype that they have.
        precision: The precision of training. With "bfloat16", weights that are trained are gathered in bfloat16:
            autocast would otherwise keep a copy in bfloat16 of every gathered weight until the end of the pass.

    Raises:
        ConfigError: A quantised weight has no plain tensors inside.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # A denoiser leaves what its network returned as it is; torch warns everybody who might not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    module, trained = denoiser.module, set(adapter)
    full = not trained
    # A number alone has no rows that could be split.
    kept = trained | {tensor for tensor in open_weights(module) if tensor.dim() == 0}
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = _policy(full and precision == "bfloat16")
    # Also after the outermost pass: gathered weights would else outlive a pass without gradients, and the values of the
    # shards may change after it, as around validation with the moving average.
    sharded = partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for block in getattr(module, denoiser.blocks):
        _convert(block, dtype, except_for=kept, trained=full)
        sharded(block, ignored_params=kept)
    _convert(module, dtype, except_for=kept, trained=full)
    inner = {parameter for block in getattr(module, denoiser.blocks) for parameter in block.parameters()}
    outer = set() if full else set(module.parameters()) - inner
    if not full:
        for parameter in kept | outer:
            parameter.data = parameter.data.to(device)
    if entrances(type(denoiser)):  # from there the next block is gathered while one computes
        sharded(module, ignored_params=kept | outer)
        for method in denoiser.entries:
            register_fsdp_forward_method(module, method)
    _finish(module, device)


def _finish(module: nn.Module, device: torch.device) -> None:
    """Move all buffers to a device, as sharding moves parameters alone, and let gradients be summed."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # sums: a sample's weight is in the loss already
            part.set_force_sum_reduction_for_comms(True)
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, buffer.to(device), persistent=name not in part._non_persistent_buffers_set)


def open_weights(module: nn.Module) -> list[nn.Parameter]:
    """Make the plain tensors inside quantised weights parameters of their layers, in place of the weights.

    A layer then builds its weight from these parameters whenever it is asked for it. Returns these parameters.
    """
    from torch._functorch._aot_autograd.subclass_parametrization import UnwrapTensorSubclass
    from torch.nn.utils.parametrize import register_parametrization

    found: list[nn.Parameter] = []
    for name, part in list(module.named_modules()):
        for own, parameter in list(part.named_parameters(recurse=False)):
            if type(parameter) is nn.Parameter or type(parameter.data) is Tensor:
                continue
            if not is_traceable_wrapper_subclass(parameter):
                raise ConfigError(
                    f"train.shard: {name}.{own} is quantised ({type(parameter).__name__}), and does not say which "
                    "tensors it consists of (__tensor_flatten__), so that it cannot be split",
                    "Use another quantiser, such as bitsandbytes or torchao, or set train.shard to 'none'.",
                )
            register_parametrization(part, own, UnwrapTensorSubclass(), unsafe=True)
            found += part.parametrizations[own].parameters()
    return found


def _policy(gathered_in_bfloat16: bool) -> Any:
    """Return torch's policy for the dtypes of gathered weights and of the sums of their gradients."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if not gathered_in_bfloat16:
        return MixedPrecisionPolicy()
    # Inputs keep their dtype: autocast converts those that it should.
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def entrances(denoiser: type[Denoiser]) -> tuple[str, ...]:
    """Return the methods of the network by which a denoiser enters it; none if the denoiser does not say."""
    return ("forward", *denoiser.entries) if denoiser.entered_by_forward else denoiser.entries


def _convert(module: nn.Module, dtype: torch.dtype | None, *, except_for: set[nn.Parameter], trained: bool) -> None:
    """Convert all parameters of `module` that are not sharded yet to `dtype`, and then, if trained, to float32."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor in except_for or is_sharded(tensor) or not tensor.is_floating_point():
            continue
        if dtype is not None and isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(dtype)
        if trained:
            tensor.data = tensor.data.float()


@contextmanager
def seen_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A context in which the parameters of `module` seem to have a dtype, without values and without memory for them.

    A new adapter gets first values that depend on the dtype of the weights which it is put on.
    """
    kept = [(p, p.data) for p in module.parameters() if p.is_floating_point() and p.dtype != dtype]
    try:
        for parameter, values in kept:
            parameter.data = torch.zeros((), dtype=dtype).expand(values.shape)
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


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

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the box that is all of a tensor of this shape."""
        return cls((0,) * len(shape), shape)

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
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found.detach()


def local_box(tensor: Tensor) -> Box:
    """Return which part of the full tensor this process holds; of a tensor that is not sharded, all of it."""
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Box.whole(shape)
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
