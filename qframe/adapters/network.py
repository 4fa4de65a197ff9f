"""Puts LoRA adapters on a network, new ones for training or those of files, and merges them into the weights.

Only this module and `qframe.adapters.fitting` of qframe's core use peft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qframe.adapters.fitting import adapted, fill, inject, linears_of, peft_config, plain_weight, read_fitting
from qframe.adapters.initial import FROZEN, frozen_files, initial_layers
from qframe.adapters.layer import LoraLayer, as_float32
from qframe.adapters.targets import resolve_targets
from qframe.config.schema import LoraConfig
from qframe.errors import ConfigError, NumericsError
from qframe.files.lora_file import find_lora


def layer_names(module: nn.Module) -> list[str]:
    """Return the full names of all linear layers of `module`, with or without adapters on them."""
    return list(linears_of(module))


def add_lora(
    module: nn.Module,
    config: LoraConfig,
    presets: Mapping[str, tuple[str, ...]],
    *,
    seed: int,
    device: torch.device | None = None,
) -> dict[str, nn.Parameter]:
    """Put a new adapter on `module` for training, and freeze all other parameters.

    At first a new adapter does not change what the network computes: its matrix `up` is zero, and with DoRA the
    magnitudes are the lengths of the rows of the weights. With `lora.init`, the adapter is the LoRA of that file.
    Adapters that `add_frozen` has put on the network stay there beside it, and are not trained.

    Args:
        module: The network.
        config: Rank, alpha, targets and kind of the adapter.
        presets: By the name of a preset, the targets that it stands for (see `resolve_targets`).
        seed: Decides the random first values of the adapter. The state of torch's random generators is not changed.
        device: The device of the adapter; by default that of the weights, which is another one if these are streamed.

    Returns:
        The adapter's parameters by name, in float32. They are the parameters to train.

    Raises:
        ConfigError: `module` has an adapter already, or a target matches no linear layer, or the adapter is a DoRA and
            the weight of one of its layers is quantised, or `config` contradicts the file `lora.init`.
        WeightsError: The file `lora.init` cannot be used, or does not fit the network.
    """
    from peft import LoraConfig as PeftLoraConfig

    carried = {adapter for part in adapted(module).values() for adapter in part.lora_A}
    if any(not adapter.startswith(FROZEN) for adapter in carried):
        raise ConfigError(
            f"{type(module).__name__} carries an adapter already, and another one is trained on plain weights only",
            "Merge it into them (merge_lora), or load the network anew.",
        )
    first = initial_layers(module, config, presets)
    names = resolve_targets(module, config.targets or (), presets) if first is None else list(first)
    if config.dora:
        _check_for_dora(module, names)
    lengths = _row_lengths(module, names, device) if config.dora and first is None else {}
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every other device for good
        if first is None:
            assert config.rank is not None  # `initial_layers` has checked it
            kind = {"r": config.rank, "lora_alpha": trained_alpha(config), "target_modules": names}
            inject(PeftLoraConfig(**kind, lora_dropout=config.dropout, use_dora=config.dora), module)
        else:
            inject(peft_config(first, dropout=config.dropout), module)
    carriers = adapted(module)
    trained = _made_trainable(module, device)
    for name, layer in (first or {}).items():
        fill(carriers[name], "default", layer)
    if not config.dora and config.dropout == 0:
        _spare_copies(module)
    for name, length in lengths.items():
        module.get_parameter(f"{name}.lora_magnitude_vector.default.weight").data = length
    return trained


def _made_trainable(module: nn.Module, device: torch.device | None) -> dict[str, nn.Parameter]:
    """Let all adapters on `module` take part, and only the parameters of the one named "default" be trained."""
    for part in adapted(module).values():
        part.set_adapter(list(part.lora_A))  # frozen ones too
    module.requires_grad_(False)
    trained = {name: p for name, p in module.named_parameters() if ".lora_" in name and ".default." in name}
    for parameter in trained.values():
        # peft gave the weight's dtype; bfloat16 would lose small updates
        parameter.data = parameter.data.to(parameter.device if device is None else device, torch.float32)
        parameter.requires_grad_(True)
    return trained


def _check_for_dora(module: nn.Module, names: Sequence[str]) -> None:
    """ConfigError if a layer for a DoRA carries a frozen LoRA, which peft cannot add up, or has a quantised weight."""
    linears = linears_of(module)
    for name in names:
        plain_weight(name, linears[name], "DoRA needs the exact lengths of its rows")
    both = sorted(adapted(module).keys() & set(names))
    if both:
        raise ConfigError(
            f"lora.dora: {both[0]} carries a LoRA of lora.frozen, and DoRA cannot be one of several adapters",
            "Set lora.dora to false, or merge the frozen LoRAs into the model (qframe lora merge).",
        )


def _spare_copies(module: nn.Module) -> None:
    """Let the layers with adapters pass on their input as it is under autocast, which converts it itself.

    peft converts the input of an adapter to float32, the dtype of its matrices, and autocast converts it back to
    bfloat16. Nothing is gained by this, but the backward pass keeps a copy of the input for every adapter. DoRA
    measures the weight in the dtype of its input, and dropout multiplies in it, so that both need the copy in float32.
    """
    for part in adapted(module).values():
        part._cast_input_dtype = _unless_autocast


def _unless_autocast(x: Tensor, dtype: torch.dtype) -> Tensor:
    kind = x.device.type
    return x if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) else x.to(dtype)


def _row_lengths(module: nn.Module, names: Sequence[str], device: torch.device | None) -> dict[str, Tensor]:
    """Return the lengths of the rows of layers' weights, each [out] in float32, by the name of the layer.

    peft would round them to the dtype of the weight. They are computed on `device`, because devices differ in the last
    bits; None means the device of the weight.
    """
    linears, lengths = linears_of(module), {}
    for name in names:
        weight = linears[name].weight.detach()
        lengths[name] = torch.linalg.norm((weight if device is None else weight.to(device)).float(), dim=1)
    return lengths


def trained_alpha(config: LoraConfig) -> float:
    """Return the alpha that a configuration means, converted so that the update is multiplied by alpha / rank.

    If `config.alpha` is None, alpha is the rank. rsLoRA (arXiv 2312.03732) multiplies the update by alpha / sqrt(rank)
    instead; its alpha is multiplied by sqrt(rank) here, so that every program that reads the file scales it rightly.
    """
    assert config.rank is not None  # only a LoRA of `lora.init` has its rank from elsewhere
    alpha = float(config.rank if config.alpha is None else config.alpha)
    return as_float32(alpha * math.sqrt(config.rank) if config.rslora else alpha)


def lora_layers(module: nn.Module, *, adapter: str = "default") -> dict[str, LoraLayer]:
    """Return the updates of an adapter that is on `module`, by the full name of the layer that each of them changes.

    Args:
        module: The network.
        adapter: The name that the adapter got when it was put on the network.
    """
    return {
        name: LoraLayer(
            layer.lora_A[adapter].weight.detach(),
            layer.lora_B[adapter].weight.detach(),
            float(layer.lora_alpha[adapter]),
            layer.lora_magnitude_vector[adapter].weight.detach() if adapter in layer.lora_magnitude_vector else None,
        )
        for name, layer in adapted(module).items()
        if adapter in layer.lora_A
    }


def load_lora(module: nn.Module, file: Path, scale: float = 1.0, *, adapter: str = "default") -> None:
    """Put the LoRA of a file on `module`, beside adapters that are on it already, and freeze all parameters.

    Args:
        module: The network.
        file: The LoRA file, or a folder in which `find_lora` finds one.
        scale: The factor by which the LoRA's update is multiplied.
        adapter: The name of the adapter on the network. No other adapter there may have the same name.

    Raises:
        WeightsError: The file cannot be used, or has layers that the network does not have, or has in another shape.
            The network is unchanged then.
        ConfigError: A layer would have a DoRA and another adapter, which peft cannot add up correctly; or the file is a
            DoRA and the weight of one of its layers is quantised.
    """
    file = find_lora(file)
    layers = read_fitting(module, file)
    _check_dora(module, file, layers)
    inject(peft_config(layers, scale=scale), module, adapter_name=adapter)
    for name, part in adapted(module).items():
        if name in layers:
            fill(part, adapter, layers[name])
        part.set_adapter(list(part.lora_A))
    module.requires_grad_(False)


def add_frozen(module: nn.Module, config: LoraConfig) -> None:
    """Put the LoRAs of `lora.frozen` on `module`, each multiplied by its scale. The errors are those of `load_lora`."""
    for number, (file, scale) in enumerate(frozen_files(config).items()):
        load_lora(module, file, scale, adapter=f"{FROZEN}{number}")


def _check_dora(module: nn.Module, file: Path, layers: Mapping[str, LoraLayer]) -> None:
    from peft.tuners.lora import LoraLayer as PeftLayer

    linears = linears_of(module)
    for name, layer in layers.items():
        if layer.magnitude is not None:
            plain_weight(name, linears[name], "DoRA needs the exact lengths of its rows")
        part = module.get_submodule(name)
        if isinstance(part, PeftLayer) and (layer.magnitude is not None or len(part.lora_magnitude_vector)):
            raise ConfigError(
                f"LoRA file {file}: {name} carries an adapter already, and DoRA cannot be one of several",
                "Merge them into the model instead (qframe lora merge): there updates add up in any order.",
            )


def merge_lora(module: nn.Module) -> None:
    """Add the updates of all adapters on `module` to its weights, and remove the adapters from the network.

    Raises:
        ConfigError: The weight of a changed layer is quantised, so that nothing can be added to it exactly.
        NumericsError: A weight would not be finite after the sum.
    """
    adapters = dict.fromkeys(adapter for part in adapted(module).values() for adapter in part.lora_A)
    loras = [(lora_layers(module, adapter=adapter), 1.0) for adapter in adapters]
    add_updates(module, loras)
    remove_loras(module)


def remove_loras(module: nn.Module) -> None:
    """Remove all adapters from a network, whose weights are those that they were without them."""
    for name, part in adapted(module).items():
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], part.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


@torch.no_grad()
def add_updates(module: nn.Module, loras: Sequence[tuple[Mapping[str, LoraLayer], float]]) -> None:
    """Add the updates of several LoRAs to the weights of `module`, in place.

    A weight and all of its updates are summed in float32, and the sum is rounded once to the dtype of the weight. Every
    update is computed from the weight as it was before the call, because the order of the LoRAs must not matter.

    Args:
        module: The network.
        loras: One pair for each LoRA: its updates by the full name of the changed layer, and its scale.

    Raises:
        ConfigError: The weight of a changed layer is quantised, so that nothing can be added to it exactly.
        NumericsError: A weight would not be finite after the sum; the message names its layer.
    """
    linears = linears_of(module)
    changed = [name for name in linears if any(name in layers for layers, _ in loras)]
    weights = {name: plain_weight(name, linears[name], "nothing can be added to it exactly") for name in changed}
    for name, weight in weights.items():
        updates = [layers[name].update(weight, scale) for layers, scale in loras if name in layers]
        merged = (weight.float() + torch.stack(updates).sum(0)).to(weight.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise NumericsError(f"{name}: merged, its weight would not be finite", "Give the LoRA a smaller scale.")
        weight.copy_(merged)
