"""Spreads components over several devices, and offloads their weights to the CPU until their network computes.

Offloaded weights are moved by hooks of accelerate (one network at a time) or diffusers (one group of layers at a time).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import psutil
import torch
from torch import nn

from qframe.errors import ConfigError
from qframe.interfaces import LatentCodec, Loadable, Quantiser

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
            hooks: The hooks of accelerate, one per network; empty if groups of layers or nothing is offloaded.
            offloaded: Whether anything is offloaded.
        """
        self.hooks = tuple(hooks)
        self._offloaded = offloaded

    def free(self) -> None:
        """Move the networks that have hooks back to the CPU, and empty the devices' memory caches.

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
    quantised: Sequence[str] = (),
) -> Placement:
    """Install the hooks that move the weights of loaded components between the CPU and their devices.

    Args:
        parts: The loaded components by role, with their weights on the CPU unless `offload` is "none".
        devices: The device on which each component computes, by role.
        offload: "none" leaves all weights where they are, "model" moves one network at a time, "stream" one group
            of layers at a time.
        quantised: The roles whose weights are quantised.

    Raises:
        ConfigError: `offload` is "stream", and weights are quantised.
    """
    if offload == "none":
        return Placement()
    chosen = [role for role in ORDER if role in parts and parts[role].network is not None]
    if offload == "model":
        hooks: list[Any] = []
        for role in chosen:
            hooks.append(_offload_model(parts[role], devices[role], hooks[-1] if hooks else None))
        return Placement(hooks, offloaded=True)
    check_groups(quantised)
    for role in chosen:
        if role == "codec":  # it is small, and its two methods would not run the hooks of groups
            parts[role].network.to(devices[role])  # type: ignore[union-attr]
        else:
            _offload_groups(parts[role], devices[role])
    return Placement(offloaded=True)


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


def check_groups(quantised: Sequence[str]) -> None:
    """Raise a ConfigError if any role has quantised weights, which cannot be moved in groups."""
    if quantised:
        # diffusers moves a parameter by assigning `.data`; the tensors inside a quantised parameter would not move.
        raise ConfigError(
            f"offload = 'stream' cannot move quantised weights ({', '.join(quantised)})",
            "Use offload = 'model', or leave quantise out.",
        )


def _offload_model(part: Loadable, device: torch.device, previous: Any | None) -> Any:
    from accelerate import cpu_offload_with_hook

    _, hook = cpu_offload_with_hook(part.network, device, prev_module_hook=previous)
    part.placed_on = device
    return hook


def _offload_groups(part: Loadable, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    by_block = part.group_offload == "block_level"
    apply_group_offloading(
        part.network,
        onload_device=device,
        offload_device=CPU,
        offload_type=part.group_offload,
        num_blocks_per_group=1 if by_block else None,
        use_stream=device.type == "cuda" and part.entered_by_forward,
    )
    part.placed_on = device
