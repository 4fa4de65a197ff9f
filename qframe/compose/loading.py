"""Loads one component, and quantises its weights if the configuration names a quantiser for them."""

from __future__ import annotations

from typing import Any

import torch

from qframe.compose.placement import CPU
from qframe.errors import ConfigError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Loadable, Quantiser


@torch.inference_mode(False)
def load_component(
    kind: type[Loadable],
    model: ModelFolder,
    options: Any,
    quantiser: Quantiser | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    role: str,
    name: str,
) -> Any:
    """Load a component from its model folder onto a device.

    Weights that are to be quantised are loaded and quantised on the CPU, and moved to the device afterwards, because
    unquantised they might not fit on it. The weights can be trained on, even if the caller has entered
    `torch.inference_mode()`.

    Args:
        kind: The class of the component.
        model: The model folder.
        options: The settings of the component, an instance of the class that its plugin declares; None if it has none.
        quantiser: Quantises the weights; None leaves them as they are.
        device: The device for the weights.
        dtype: The dtype of the weights before they are quantised.
        role: The role of the component, for the error.
        name: The registered name of the component, for the error.

    Raises:
        ConfigError: The weights are to be quantised, and the component's `network` is None.
    """
    if quantiser is None:
        return kind.load(model, options, device=device, dtype=dtype)
    part = kind.load(model, options, device=CPU, dtype=dtype)
    if part.network is None:
        raise ConfigError(
            f"{role}.quantise: {role} {name!r} shows no network to quantise",
            "Leave it out, or choose another component.",
        )
    quantiser.quantise(part.network)
    part.network.to(device)
    return part
