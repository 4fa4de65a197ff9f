"""Decides which device each component computes on, and which dtype its weights have."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from qframe.compose import placement
from qframe.config.schema import Config
from qframe.errors import ConfigError


def find_device(key: str, name: str) -> torch.device:
    """Return the device of a name that a configuration gives.

    The name "auto" is the accelerator that torch has found on this machine (CUDA, MPS, XPU, or the one of a package
    that extends torch), else the CPU. Under torchrun, each process of the machine takes another of the accelerators.

    Args:
        key: The configuration key that the name belongs to, for the error.
        name: The name as torch writes it, for example "cuda:1", or "auto".

    Raises:
        ConfigError: The name is no device, or this machine has no such device. The hint lists the devices it has.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    available = [] if accelerator is None else accelerators(accelerator.type)
    if name == "auto":
        # The processes of torchrun on one machine take an accelerator each.
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device(available[local % len(available)] if available else "cpu")
    available.append("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: {name!r} is not a device", f"Known here: auto, {', '.join(available)}.") from error
    if device.type != "cpu" and str(device) not in {*available, *(item.partition(":")[0] for item in available)}:
        raise ConfigError(
            f"{key}: this machine has no device {name!r}", f"Available: {', '.join(available)}. Or say auto."
        )
    return device


def accelerators(kind: str) -> list[str]:
    """Return the names of the accelerators of one type: "cuda:0" and "cuda:1", or "mps", of which there is one."""
    count = torch.get_device_module(kind).device_count()
    return [kind] if kind == "mps" else [f"{kind}:{index}" for index in range(count)]


def configured_device(config: Config, role: str) -> torch.device:
    """Return the device that the configuration names for a role: the one in the role's section, else `device`."""
    own = getattr(config, role).device
    return find_device("device", config.device) if own is None else find_device(f"{role}.device", own)


def listed_devices(config: Config) -> tuple[torch.device, ...]:
    """Return the devices that the key `devices` lists, over which components are spread."""
    return tuple(find_device("devices", name) for name in config.devices)


def spread(config: Config, sizes: Mapping[str, int]) -> dict[str, torch.device]:
    """Choose one of the devices in the key `devices` for each component that has no device in its own section.

    The largest component is placed first, and each on the device with most free memory left. A component that has a
    device in its own section is not placed, but its bytes are taken off that device's free memory.

    Args:
        config: The configuration.
        sizes: Bytes of the weights of every component, by role.

    Returns:
        The chosen devices, by role.
    """
    free = {device: placement.room_on(device).free for device in listed_devices(config)}
    unplaced = {}
    for role, size in sizes.items():
        own = getattr(config, role).device
        if own is None:
            unplaced[role] = size
        elif (device := find_device(f"{role}.device", own)) in free:
            free[device] -= size
    return placement.assign(unplaced, free)


def dtype_on(config: Config, role: str, device: torch.device) -> torch.dtype:
    """Return the dtype that the weights of a role have on a device; "auto" is float32 on a CPU, else bfloat16."""
    name = getattr(config, role).dtype or config.dtype
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
