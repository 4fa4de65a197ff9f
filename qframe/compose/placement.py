"""Where components rest and compute: over several devices, or on the CPU until their turn.

Moving weights is left to the hooks of accelerate (a whole network at a time) and of diffusers (a block at a time).
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

Offload = Literal["none", "model", "group"]

ORDER = ("encoder", "denoiser", "codec")
"""In which order a sampling run last needs them: each network leaves the device when the next one comes."""

CPU = torch.device("cpu")


@attrs.frozen
class Room:
    """Memory of a device, in bytes: what is free now, and all there is."""

    free: int
    total: int


def room_on(device: torch.device) -> Room:
    """The memory of a device, or of the machine where it has none of its own."""
    if device.type == "cuda":
        return Room(*torch.cuda.mem_get_info(device))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Room(total - torch.mps.driver_allocated_memory(), total)
    memory = psutil.virtual_memory()
    return Room(memory.available, memory.total)


def network_bytes(network: nn.Module, quantiser: Quantiser | None = None) -> int:
    """Bytes of the parameters and buffers of a network, which may lie on the meta device, once it is quantised."""
    plain = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if quantiser is None:
        return plain
    for name, part in network.named_modules():
        smaller = quantiser.weight_bytes(name, part) if isinstance(part, nn.Linear) else None
        if smaller is not None:
            plain += smaller - part.weight.nbytes
    return plain


def assign(sizes: Mapping[str, int], rooms: Mapping[torch.device, int]) -> dict[str, torch.device]:
    """A device for each component: the largest first, each where most of `rooms` (bytes) is left."""
    left = dict(rooms)
    chosen: dict[str, torch.device] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        device = max(left, key=lambda device: left[device])
        chosen[name] = device
        left[device] -= sizes[name]
    return chosen


class Placement:
    """Networks that were put in their places, some of them on the CPU between uses."""

    def __init__(self, hooks: Sequence[Any] = (), *, offloaded: bool = False) -> None:
        self.hooks = tuple(hooks)
        self._offloaded = offloaded

    def free(self) -> None:
        """Bring what rests on the CPU back there, and give the memory of devices back."""
        from accelerate.utils.memory import clear_device_cache

        for hook in self.hooks:
            hook.offload()
        if self._offloaded:
            clear_device_cache()

    @contextmanager
    def freed(self) -> Iterator[None]:
        """Memory is given back when the block ends, however it ends."""
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
    """Offload loaded parts whose weights rest on the CPU; with "none" they are where they were loaded.

    devices: where each computes. quantised: roles with quantised weights. ConfigError if these would have to move in
    groups.
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
        if role == "codec":  # small, and entered by two methods that no group would hear of
            parts[role].network.to(devices[role])  # type: ignore[union-attr]
        else:
            _offload_groups(parts[role], devices[role])
    return Placement(offloaded=True)


def rest_codec(codec: LatentCodec, device: torch.device, *, live: bool) -> Placement:
    """A loaded codec in training: on the CPU between uses whole or, where every step encodes, its decoder alone."""
    from accelerate import cpu_offload_with_hook

    network = codec.decoder if live else codec.network
    if network is None:
        return Placement()
    codec.placed_on = device
    return Placement([cpu_offload_with_hook(network, device)[1]], offloaded=True)


def check_groups(quantised: Sequence[str]) -> None:
    """ConfigError if weights in `quantised` roles cannot be moved in groups."""
    if quantised:
        # diffusers moves a parameter by assigning `.data`, which leaves what a quantised one is made of behind.
        raise ConfigError(
            f"offload = 'group' cannot move quantised weights ({', '.join(quantised)})",
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
