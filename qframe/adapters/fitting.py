"""Fits the LoRA of a file to a network: finds the linear layers, checks names and shapes, and puts adapters on them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qframe.adapters.files import read_lora
from qframe.adapters.layer import LoraLayer
from qframe.errors import ConfigError, WeightsError, bullet_list

_SHOWN = 10


def read_fitting(module: nn.Module, file: Path) -> dict[str, LoraLayer]:
    """Read a LoRA file, check that it fits `module`, and return its updates by the full name of the changed layer.

    Raises:
        WeightsError: The file cannot be used (see `read_lora`), or it has layers that the network does not have, or has
            in another shape; the message names them.
        UntrustedError: The file is larger than any LoRA.
    """
    linears = linears_of(module)
    layers = read_lora(file, names=linears)
    problems = []
    for name, layer in layers.items():
        if name not in linears:
            problems.append(f"{name}: the network has no such linear layer")
            continue
        linear = linears[name]
        wanted = (linear.in_features, linear.out_features)
        got = (layer.down.shape[1], layer.up.shape[0])
        if wanted != got:
            problems.append(
                f"{name}: made for {got[0]} -> {got[1]} features, the network has {wanted[0]} -> {wanted[1]}"
            )
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"LoRA file {file} does not fit {type(module).__name__} ({len(problems)} of {len(layers)} layers):\n"
            + bullet_list(problems[:_SHOWN])
            + more,
            _misfit(layers.keys(), linears.keys()),
        )
    return layers


def _misfit(found: Set[str], known: Set[str]) -> str:
    """Say what the names of a file's layers tell about the network that it was made for."""
    common = found & known
    if len(common) == len(found):
        return "It was made for a network of another size."
    if common:
        return "It was made for another network, which has some layers of the same names."
    endings = {name.rpartition(".")[2] for name in known}
    if not any(name.rpartition(".")[2] in endings for name in found):
        return "No name in it is like one of this network's: it was made for another network."
    beginning, own = min(found).partition(".")[0], min(known).partition(".")[0]
    return (
        f"Its names begin with {beginning!r}, the network's with {own!r} or the like: it was made for another network, "
        "or its names have a prefix that only a part of them shares."
    )


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """Return all linear layers of `module` by their full name, those without the adapters that they carry."""
    # A layer that carries an adapter keeps its weight in `base_layer`; the name of the layer stays.
    return {
        name: linear
        for name, part in module.named_modules()
        if isinstance(linear := getattr(part, "base_layer", part), nn.Linear)
        and not name.endswith(".base_layer")
        and ".lora_" not in name
    }


def plain_weight(name: str, linear: nn.Linear, otherwise: str) -> Tensor:
    """Return the weight of a linear layer. ConfigError says `otherwise` if the weight is quantised."""
    # A quantised weight is of a class derived from torch's parameters, or has other tensors inside.
    kind = type(linear.weight)
    if nn.Parameter in kind.__mro__[1:] or hasattr(kind, "__tensor_flatten__"):
        raise ConfigError(
            f"{name}: its weight is quantised ({kind.__name__}), and {otherwise}",
            "Load the denoiser without denoiser.quantise for that.",
        )
    return linear.weight


def inject(config: Any, module: nn.Module, adapter_name: str = "default") -> None:
    """Let peft put an adapter on `module`. Two of its warnings are left out.

    One is that torchao's weights cannot be merged: `merge_lora` refuses quantised weights anyway, and says so. The
    other is that there are several adapters, which is wanted.
    """
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated without")
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        inject_adapter_in_model(config, module, adapter_name=adapter_name)


def adapted(module: nn.Module) -> dict[str, Any]:
    """Return the layers of `module` that carry adapters, which are of a class of peft, by their full name."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, PeftLayer)}


def peft_config(layers: Mapping[str, LoraLayer], *, scale: float = 1.0, dropout: float = 0.0) -> Any:
    """Return peft's configuration of an adapter with the layers, ranks and alphas of a LoRA.

    Args:
        layers: The updates of the LoRA, by the full name of the layer.
        scale: The factor by which every update is multiplied.
        dropout: The probability that an input of the adapter is set to 0 in training.
    """
    from peft import LoraConfig as PeftLoraConfig

    # Patterns only for layers that differ from most: peft compares every layer with every pattern, which takes half
    # a minute for all layers of Qwen-Image.
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    return PeftLoraConfig(
        r=rank,
        lora_alpha=alpha * scale,
        lora_dropout=dropout,
        target_modules=list(layers),
        use_dora=any(layer.magnitude is not None for layer in layers.values()),
        rank_pattern={f"^{re.escape(name)}$": layer.rank for name, layer in layers.items() if layer.rank != rank},
        alpha_pattern={
            f"^{re.escape(name)}$": layer.alpha * scale for name, layer in layers.items() if layer.alpha != alpha
        },
    )


@torch.no_grad()
def fill(part: Any, adapter: str, layer: LoraLayer) -> None:
    """Give an adapter of a layer that carries adapters the values of a LoRA's update."""
    part.lora_A[adapter].weight.copy_(layer.down)
    part.lora_B[adapter].weight.copy_(layer.up)
    if layer.magnitude is not None:
        part.lora_magnitude_vector[adapter].weight.copy_(layer.magnitude)
