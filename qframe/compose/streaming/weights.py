"""The frozen weights of one block: they rest in host memory, and copies of them can be shown to the network."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Sequence

import attrs
import psutil
import torch
from torch import Tensor, nn

from qframe.compose.streaming.pieces import Join, lay_out, take_apart

_LEFT_FREE = 2 * 2**30
"""The bytes of host memory that no pinned weights take: pinned memory cannot be swapped out."""


@attrs.frozen(eq=False)
class Place:
    """A parameter's place in a network.

    Attributes:
        module: The module that the parameter belongs to.
        name: The parameter's name in this module.
    """

    module: nn.Module
    name: str

    @property
    def key(self) -> tuple[int, str]:
        """What tells this place apart from all others of the same network."""
        return id(self.module), self.name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that is there now."""
        found = self.module._parameters[self.name]
        assert found is not None
        return found

    def put(self, parameter: nn.Parameter) -> None:
        """Put a parameter there. Nothing is copied."""
        self.module._parameters[self.name] = parameter


class Weights:
    """Frozen weights that rest in host memory, and of which copies on a device can take the place.

    The copies are never written back. While they are there, the parameters of the network are views of their memory,
    so that a backward pass which needs values that were overwritten ends with torch's error.

    Attributes:
        places: Where the weights are in the network.
        size: The bytes that a copy of all of them takes in flat memory.
        master: The weights in pinned host memory, [size] in uint8; None if they stayed in the memory that they were
            loaded into, for example mapped from their file.
    """

    def __init__(self, places: Sequence[Place], device: torch.device) -> None:
        """Take the weights apart, and leave them where they are.

        Args:
            places: The parameters, whose values lie in host memory.
            device: The device that copies will go to.
        """
        self.places = tuple(places)
        self.master: Tensor | None = None
        taken = [_as_on(place.parameter, device) for place in self.places]
        self._sources = [part for parts, _ in taken for part in parts]
        self._joins: list[tuple[int, Join]] = [(len(parts), join) for parts, join in taken]
        self._pieces, self.size = lay_out(self._sources)
        self._home = self._parameters(self._sources)
        self.rest()

    def pin(self, device: torch.device) -> bool:
        """Move the weights into one piece of pinned host memory; return False if there cannot be any."""
        memory = pinned(self.size, device, owner=self)
        if memory is None:
            return False
        self.fill(memory)
        self.master = memory
        self._sources = [piece.of(memory) for piece in self._pieces]
        self._home = self._parameters(self._sources)
        self.rest()
        return True

    def fill(self, memory: Tensor) -> None:
        """Copy the weights from where they rest into flat host memory."""
        for piece, source in zip(self._pieces, self._sources, strict=True):
            piece.of(memory).copy_(source)

    def copies(self, memory: Tensor) -> list[nn.Parameter]:
        """Return parameters whose values are what flat memory holds."""
        return self._parameters([piece.of(memory) for piece in self._pieces])

    def show(self, copies: Sequence[nn.Parameter]) -> None:
        """Let the network compute with these copies."""
        for place, parameter in zip(self.places, copies, strict=True):
            place.put(parameter)

    def rest(self) -> None:
        """Let the network have the weights in host memory."""
        self.show(self._home)

    def _parameters(self, plain: Sequence[Tensor]) -> list[nn.Parameter]:
        left, made = list(plain), []
        for count, join in self._joins:
            made.append(nn.Parameter(join(left[:count]), requires_grad=False))
            del left[:count]
        return made


_UNCHANGED: dict[tuple[object, ...], bool] = {}
"""Whether quantised weights of a kind keep their bytes when they are moved to a kind of device."""


def _as_on(parameter: Tensor, device: torch.device) -> tuple[list[Tensor], Join]:
    """Take a weight apart as it is on a device, with its values in host memory.

    A quantised weight may get another order of its bytes on another device, for the kernels there. So it is moved there
    once, and taken apart there. Weights that keep their bytes stay where they are, as they may be mapped from a file.
    """
    own, join = take_apart(parameter)
    if not hasattr(parameter, "__tensor_flatten__") or device.type == "cpu":
        return own, join
    kind = (type(parameter), device, *((part.dtype, part.ndim) for part in own))
    if _UNCHANGED.get(kind, False):
        return own, join
    there = parameter.detach().to(device)
    parts, join_there = take_apart(there)
    back = [part.cpu() for part in parts]
    if kind not in _UNCHANGED:
        _UNCHANGED[kind] = type(there) is type(parameter) and _same(own, back)
    return (own, join) if _UNCHANGED[kind] else (back, join_there)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


def host_room() -> int:
    """Return the bytes of host memory that this process may pin, of which every process on this machine has a share."""
    processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    memory = psutil.virtual_memory()
    return int(max(0, memory.available - max(_LEFT_FREE, memory.total // 8)) // processes)


def pinned(size: int, device: torch.device, *, owner: object) -> Tensor | None:
    """Return host memory from which copies to a device need not wait for the host, [size] in uint8.

    For CUDA, memory is registered: torch's own allocator of pinned memory would round its size up to a power of two.

    Args:
        size: How many bytes.
        device: The device that is copied to.
        owner: The memory stays pinned as long as this object lives.

    Returns:
        None if the system refuses.
    """
    if device.type == "cpu":
        return torch.empty(size, dtype=torch.uint8)
    if device.type != "cuda":
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            return None
    memory = torch.empty(max(size, 1), dtype=torch.uint8)
    runtime = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 1)) != 0:  # 1: cudaHostRegisterPortable
        return None
    weakref.finalize(owner, _unpin, memory).atexit = False
    return memory.narrow(0, 0, size)


def _unpin(memory: Tensor) -> None:
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
