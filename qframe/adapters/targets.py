"""Finds the linear layers that the key `lora.targets` chooses."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from qframe.adapters.fitting import linears_of
from qframe.errors import ConfigError


def resolve_targets(module: nn.Module, targets: tuple[str, ...], presets: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the full names of the linear layers that `targets` choose.

    Args:
        module: The network, which may lie on the meta device.
        targets: The layers to choose. Each text is the name of a preset, or a layer's full name, or what follows a dot
            in it up to its end ("to_q" chooses "blocks.0.attn.to_q"). The wildcards *, ? and [...] may be used.
        presets: By the name of a preset, the targets that it stands for.

    Raises:
        ConfigError: `targets` is empty, or a target matches no linear layer; the message lists presets and layers.
    """
    if not targets:
        raise ConfigError("lora.targets: names no layer", f"Presets: {', '.join(sorted(presets))}.")
    linears = list(linears_of(module))
    chosen: set[str] = set()
    for target in targets:
        for pattern in presets.get(target, (target,)):
            found = [name for name in linears if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
            if not found:
                kinds = sorted({name.split(".", 2)[-1] if name[:1].isalpha() else name for name in linears})
                raise ConfigError(
                    f"lora.targets: {target!r} matches no linear layer of {type(module).__name__}",
                    f"Presets: {', '.join(sorted(presets))}. Layers end in: {', '.join(kinds[:24])}.",
                )
            chosen.update(found)
    return [name for name in linears if name in chosen]
