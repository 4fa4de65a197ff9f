"""Spreads components over several devices, and offloads their weights to the CPU until their network computes.

Networks are moved by hooks of accelerate, one network at a time. The blocks of a network can be streamed instead
(`qframe.compose.streaming`); then all of its other weights come and go with the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

import attrs
import psutil
import torch
from torch import nn

from qframe.compose.streaming import StreamedNetwork, stream
from qframe.interfaces import LatentCodec, Loadable, Quantiser

log = logging.getLogger(__name__)

Offload = Literal["none", "model", "stream"]

ORDER = ("encoder", "denoiser", "codec")
"""The roles with large networks, sorted by when a sampling run uses each of them for the last time.

With offload "model", a network is moved back to the CPU when the next network in this order moves to the device.
"""

CPU = torch.device("cpu")


@attrs.frozen
class Room:
    """The memory of a device.

    Attributes:
        free: Bytes that are free now.
        total: Bytes in all.
    """

    free: int
    total: int


def room_on(device: torch.device) -> Room:
    """Return the memory of a device; for the CPU, the memory of the machine."""
    if device.type == "cuda":
        return Room(*torch.cuda.mem_get_info(device))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Room(total - torch.mps.driver_allocated_memory(), total)
    memory = psutil.virtual_memory()
    return Room(memory.available, memory.total)


def network_bytes(network: nn.Module, quantiser: Quantiser | None = None) -> int:
    """Count the bytes of the parameters and buffers of a network.

    Args:
        network: The network; it may be on the meta device.
        quantiser: The quantiser that will quantise the network; the bytes are those after quantisation. None counts
            the network as it is.
    """
    plain = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if quantiser is None:
        return plain
    for name, part in network.named_modules():
        smaller = quantiser.weight_bytes(name, part) if isinstance(part, nn.Linear) else None
        if smaller is not None:
            plain += smaller - part.weight.nbytes
    return plain


def assign(sizes: Mapping[str, int], rooms: Mapping[torch.device, int]) -> dict[str, torch.device]:
    """Assign a device to each component: the largest component first, each to the device with most memory left.

    Args:
        sizes: Bytes of the weights of each component.
        rooms: Free bytes of each device.
    """
    left = dict(rooms)
    chosen: dict[str, torch.device] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        device = max(left, key=lambda device: left[device])
        chosen[name] = device
        left[device] -= sizes[name]
    return chosen


class Placement:
    """The networks that `place` offloaded, which can be moved back to the CPU together."""

    def __init__(self, hooks: Sequence[Any] = (), *, offloaded: bool = False) -> None:
        """Remember the hooks that move the networks.

        Args:
            hooks: The hooks, one per network; each has a method `offload`. Empty if nothing is offloaded.
            offloaded: Whether anything is offloaded.
        """
        self.hooks = tuple(hooks)
        self._offloaded = offloaded

    def free(self) -> None:
        """Take the networks that have hooks off their devices, and empty the devices' memory caches.

        If nothing is offloaded, nothing happens.
        """
        from accelerate.utils.memory import clear_device_cache

        for hook in self.hooks:
            hook.offload()
        if self._offloaded:
            clear_device_cache()

    @contextmanager
    def freed(self) -> Iterator[None]:
        """Return a context that calls `free` when the context ends, also when it ends by an error."""
        try:
            yield
        finally:
            self.free()


def place(
    parts: Mapping[str, Loadable],
    devices: Mapping[str, torch.device],
    offload: Offload,
    *,
    resident: Mapping[str, int | None] = MappingProxyType({}),
) -> Placement:
    """Install the hooks that move the weights of loaded components between the CPU and their devices.

    Args:
        parts: The loaded components by role, with their weights on the CPU unless `offload` is "none".
        devices: The device on which each component computes, by role.
        offload: "none" leaves all weights where they are, "model" moves one network at a time, and "stream" moves
            one network at a time too, but the weights of its blocks are streamed.
        resident: How many blocks of a network keep their weights on the device as long as the network is there, by
            role. If it is None or not given, none do with "stream", and all do with "model".
    """
    if offload == "none":
        return Placement()
    hooks: list[Any] = []
    for role in (role for role in ORDER if role in parts and parts[role].network is not None):
        part, device, previous = parts[role], devices[role], hooks[-1] if hooks else None
        kept = resident.get(role)
        if kept is None and offload == "stream":
            kept = 0
        streamed = None if kept is None or device.type == "cpu" else stream(part, device, kept, visiting=True)
        if streamed is not None:
            log.info("%s", streamed.about)
        hooks.append(
            _offload_model(part, device, previous) if streamed is None else _visiting(part, streamed, previous)
        )
    return Placement(hooks, offloaded=True)


def rest_codec(codec: LatentCodec, device: torch.device, *, live: bool) -> Placement:
    """Keep the codec of a training run on the CPU while it does not compute.

    Args:
        codec: The loaded codec.
        device: The device on which the codec computes.
        live: Whether every training step encodes pictures (training without a cache). Then only the codec's decoder is
            offloaded.
    """
    from accelerate import cpu_offload_with_hook

    network = codec.decoder if live else codec.network
    if network is None:
        return Placement()
    codec.placed_on = device
    return Placement([cpu_offload_with_hook(network, device)[1]], offloaded=True)


def _offload_model(part: Loadable, device: torch.device, previous: Any | None) -> Any:
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import add_hook_to_module

    from qframe.compose.visits import Departure, Visit

    if isinstance(previous, Visit):  # which accelerate would not call
        add_hook_to_module(part.network, Departure(previous), append=True)
        previous = None
    _, hook = cpu_offload_with_hook(part.network, device, prev_module_hook=previous)
    part.placed_on = device
    return hook


def _visiting(part: Loadable, streamed: StreamedNetwork, previous: Any | None) -> Any:
    from accelerate.hooks import add_hook_to_module

    from qframe.compose.visits import Visit

    hook = Visit(streamed, previous)
    add_hook_to_module(part.network, hook, append=True)
    return hook
