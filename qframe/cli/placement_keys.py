"""What the options --offload and --devices mean as keys of the configuration."""

from __future__ import annotations

import json

from qframe.errors import ConfigError


def placement_keys(offload: str | None, devices: str | None) -> list[str]:
    """Return the configuration keys that --offload and --devices set. ConfigError names what has no device."""
    found = [] if offload is None else [f"offload={offload}"]
    listed = []
    for name in [] if devices is None else devices.replace(" ", "").split(","):
        role, sign, device = name.rpartition("=")
        if not device:
            raise ConfigError(f"--devices {devices!r}: a device is missing", "For example cuda:0,cuda:1.")
        if not sign:
            listed.append(device)
        elif role in ("encoder", "denoiser", "codec"):
            found.append(f"{role}.device={device}")
        else:
            raise ConfigError(f"--devices {name}: no component {role!r}", "Known: encoder, denoiser, codec.")
    return [*found, f"devices={json.dumps(listed)}"] if listed else found
