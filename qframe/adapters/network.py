"""Puts LoRA adapters on a network, new ones for training or those of files, and merges them into the weights.

No other module of qframe's core uses peft.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qframe.adapters.files import read_lora
from qframe.adapters.layer import LoraLayer, as_float32
from qframe.config.schema import LoraConfig
from qframe.errors import ConfigError, NumericsError, WeightsError, bullet_list
from qframe.files.lora_file import find_lora

_SHOWN = 10


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
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
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


def layer_names(module: nn.Module) -> list[str]:
    """Return the full names of all linear layers of `module`, with or without adapters on them."""
    return list(_linears(module))


def add_lora(
    module: nn.Module,
    config: LoraConfig,
    presets: Mapping[str, tuple[str, ...]],
    *,
    seed: int,
    device: torch.device | None = None,
) -> dict[str, nn.Parameter]:
    """Put a new adapter on `module` for training, and freeze all other parameters.

    At first the adapter does not change what the network computes: its matrix `up` is zero, and with DoRA the
    magnitudes are the lengths of the rows of the weights.

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
            the weight of one of its layers is quantised.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft.tuners.lora import LoraLayer as PeftLayer

    if any(isinstance(part, PeftLayer) for part in module.modules()):
        raise ConfigError(
            f"{type(module).__name__} carries an adapter already, and another one is trained on plain weights only",
            "Merge it into them (merge_lora), or load the network anew.",
        )
    names = resolve_targets(module, config.targets, presets)
    lengths = _row_lengths(module, names, device) if config.dora else {}
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every other device for good
        _inject(
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=trained_alpha(config),
                lora_dropout=config.dropout,
                use_dora=config.dora,
                target_modules=names,
            ),
            module,
        )
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        # peft gave the weight's dtype; bfloat16 would lose small updates
        parameter.data = parameter.data.to(parameter.device if device is None else device, torch.float32)
    if not config.dora and config.dropout == 0:
        _spare_copies(module)
    for name, length in lengths.items():
        module.get_parameter(f"{name}.lora_magnitude_vector.default.weight").data = length
    return trained


def _inject(config: Any, module: nn.Module, adapter_name: str = "default") -> None:
    """Let peft put an adapter on `module`. Its warning that torchao's weights cannot be merged is left out.

    `merge_lora` refuses quantised weights anyway, and says so.
    """
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated without")
        inject_adapter_in_model(config, module, adapter_name=adapter_name)


def _spare_copies(module: nn.Module) -> None:
    """Let the layers with adapters pass on their input as it is under autocast, which converts it itself.

    peft converts the input of an adapter to float32, the dtype of its matrices, and autocast converts it back to
    bfloat16. Nothing is gained by this, but the backward pass keeps a copy of the input for every adapter. DoRA
    measures the weight in the dtype of its input, and dropout multiplies in it, so that both need the copy in float32.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    for part in module.modules():
        if isinstance(part, PeftLayer):
            part._cast_input_dtype = _unless_autocast


def _unless_autocast(x: Tensor, dtype: torch.dtype) -> Tensor:
    kind = x.device.type
    return x if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) else x.to(dtype)


def _row_lengths(module: nn.Module, names: Sequence[str], device: torch.device | None) -> dict[str, Tensor]:
    """Return the lengths of the rows of layers' weights, each [out] in float32, by the name of the layer.

    peft would round them to the dtype of the weight. They are computed on `device`, because devices differ in the last
    bits; None means the device of the weight.
    """
    linears, lengths = _linears(module), {}
    for name in names:
        weight = _plain_weight(name, linears[name], "DoRA needs the exact lengths of its rows").detach()
        lengths[name] = torch.linalg.norm((weight if device is None else weight.to(device)).float(), dim=1)
    return lengths


def _plain_weight(name: str, linear: nn.Linear, otherwise: str) -> Tensor:
    # A quantised weight is of a class derived from torch's parameters, or has other tensors inside.
    kind = type(linear.weight)
    if nn.Parameter in kind.__mro__[1:] or hasattr(kind, "__tensor_flatten__"):
        raise ConfigError(
            f"{name}: its weight is quantised ({kind.__name__}), and {otherwise}",
            "Load the denoiser without denoiser.quantise for that.",
        )
    return linear.weight


def trained_alpha(config: LoraConfig) -> float:
    """Return the alpha that a configuration means, converted so that the update is multiplied by alpha / rank.

    If `config.alpha` is None, alpha is the rank. rsLoRA (arXiv 2312.03732) multiplies the update by alpha / sqrt(rank)
    instead; its alpha is multiplied by sqrt(rank) here, so that every program that reads the file scales it rightly.
    """
    alpha = float(config.rank if config.alpha is None else config.alpha)
    return as_float32(alpha * math.sqrt(config.rank) if config.rslora else alpha)


def lora_layers(module: nn.Module, *, adapter: str = "default") -> dict[str, LoraLayer]:
    """Return the updates of an adapter that is on `module`, by the full name of the layer that each of them changes.

    Args:
        module: The network.
        adapter: The name that the adapter got when it was put on the network.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {
        name: LoraLayer(
            layer.lora_A[adapter].weight.detach(),
            layer.lora_B[adapter].weight.detach(),
            float(layer.lora_alpha[adapter]),
            layer.lora_magnitude_vector[adapter].weight.detach() if adapter in layer.lora_magnitude_vector else None,
        )
        for name, layer in module.named_modules()
        if isinstance(layer, PeftLayer) and adapter in layer.lora_A
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
    from peft import LoraConfig as PeftLoraConfig
    from peft.tuners.lora import LoraLayer as PeftLayer

    file = find_lora(file)
    layers = read_fitting(module, file)
    _check_dora(module, file, layers)
    # Patterns only for layers that differ from most: peft compares every layer with every pattern, which takes half
    # a minute for all layers of Qwen-Image.
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    _inject(
        PeftLoraConfig(
            r=rank,
            lora_alpha=alpha * scale,
            target_modules=list(layers),
            use_dora=any(layer.magnitude is not None for layer in layers.values()),
            rank_pattern={f"^{re.escape(name)}$": layer.rank for name, layer in layers.items() if layer.rank != rank},
            alpha_pattern={
                f"^{re.escape(name)}$": layer.alpha * scale for name, layer in layers.items() if layer.alpha != alpha
            },
        ),
        module,
        adapter_name=adapter,
    )
    for name, part in module.named_modules():
        if isinstance(part, PeftLayer):
            if name in layers:
                _fill(part, adapter, layers[name])
            part.set_adapter(list(part.lora_A))
    module.requires_grad_(False)


def _check_dora(module: nn.Module, file: Path, layers: Mapping[str, LoraLayer]) -> None:
    from peft.tuners.lora import LoraLayer as PeftLayer

    linears = _linears(module)
    for name, layer in layers.items():
        if layer.magnitude is not None:
            _plain_weight(name, linears[name], "DoRA needs the exact lengths of its rows")
        part = module.get_submodule(name)
        if isinstance(part, PeftLayer) and (layer.magnitude is not None or len(part.lora_magnitude_vector)):
            raise ConfigError(
                f"LoRA file {file}: {name} carries an adapter already, and DoRA cannot be one of several",
                "Merge them into the model instead (qframe lora merge): there updates add up in any order.",
            )


@torch.no_grad()
def _fill(part: nn.Module, adapter: str, layer: LoraLayer) -> None:
    part.lora_A[adapter].weight.copy_(layer.down)  # type: ignore[index, union-attr]
    part.lora_B[adapter].weight.copy_(layer.up)  # type: ignore[index, union-attr]
    if layer.magnitude is not None:
        part.lora_magnitude_vector[adapter].weight.copy_(layer.magnitude)  # type: ignore[index, union-attr]


def read_fitting(module: nn.Module, file: Path) -> dict[str, LoraLayer]:
    """Read a LoRA file, check that it fits `module`, and return its updates by the full name of the changed layer.

    Raises:
        WeightsError: The file cannot be used (see `read_lora`), or it has layers that the network does not have, or has
            in another shape; the message names them.
        UntrustedError: The file is larger than any LoRA.
    """
    linears = _linears(module)
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


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    # A layer that carries an adapter keeps its weight in `base_layer`; the name of the layer stays.
    return {
        name: linear
        for name, part in module.named_modules()
        if isinstance(linear := getattr(part, "base_layer", part), nn.Linear)
        and not name.endswith(".base_layer")
        and ".lora_" not in name
    }


def merge_lora(module: nn.Module) -> None:
    """Add the updates of all adapters on `module` to its weights, and remove the adapters from the network.

    Raises:
        ConfigError: The weight of a changed layer is quantised, so that nothing can be added to it exactly.
        NumericsError: A weight would not be finite after the sum.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    carriers = {name: part for name, part in module.named_modules() if isinstance(part, PeftLayer)}
    adapters = dict.fromkeys(adapter for part in carriers.values() for adapter in part.lora_A)
    loras = [(lora_layers(module, adapter=adapter), 1.0) for adapter in adapters]
    add_updates(module, loras)
    for name, part in carriers.items():
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
    linears = _linears(module)
    changed = [name for name in linears if any(name in layers for layers, _ in loras)]
    weights = {name: _plain_weight(name, linears[name], "nothing can be added to it exactly") for name in changed}
    for name, weight in weights.items():
        updates = [layers[name].update(weight, scale) for layers, scale in loras if name in layers]
        merged = (weight.float() + torch.stack(updates).sum(0)).to(weight.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise NumericsError(f"{name}: merged, its weight would not be finite", "Give the LoRA a smaller scale.")
        weight.copy_(merged)
