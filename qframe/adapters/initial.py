"""Reads the LoRAs that a new one is trained on: the one that it starts from, and frozen ones that stay beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
from torch import nn

from qframe.adapters.files import read_lora
from qframe.adapters.fitting import linears_of, read_fitting
from qframe.adapters.layer import LoraLayer, as_float32
from qframe.adapters.targets import resolve_targets
from qframe.config.schema import LoraConfig
from qframe.config.training import MOST_RANK
from qframe.errors import ConfigError
from qframe.files.lora_file import find_lora, find_loras, scaled_file

FROZEN = "frozen_"
"""The names of frozen adapters on the network begin so."""


def frozen_files(config: LoraConfig) -> dict[Path, float]:
    """Return the files of `lora.frozen`, with the scale of each; errors as in `find_loras`."""
    return find_loras(map(scaled_file, config.frozen))


def initial_layers(
    module: nn.Module, config: LoraConfig, presets: Mapping[str, tuple[str, ...]]
) -> dict[str, LoraLayer] | None:
    """Return the updates of the LoRA that training starts from, by the full name of the changed layer.

    Args:
        module: The network, which may lie on the meta device.
        config: The settings of the LoRA. What it says of rank, alpha and layers must agree with the file.
        presets: By the name of a preset, the targets that it stands for (see `resolve_targets`).

    Returns:
        None if `lora.init` names no file.

    Raises:
        WeightsError: The file cannot be used, or does not fit the network.
        ConfigError: `config` contradicts the file, or gives neither a file nor a rank.
    """
    if config.init is None:
        if config.rank is None or config.targets is None:
            raise ConfigError("lora: without lora.init, rank and targets must be given", "Give lora.rank=16.")
        return None
    file = find_lora(Path(config.init))
    layers = read_fitting(module, file)
    _check(file, config, layers)
    if config.targets is not None:
        wanted = set(resolve_targets(module, config.targets, presets))
        if wanted != layers.keys():
            raise ConfigError(
                f"lora.targets: {', '.join(config.targets)} choose {len(wanted)} layers, and {len(layers)} are in "
                f"{file}, which lora.init starts from; the difference begins with {min(wanted ^ layers.keys())}",
                "Leave lora.targets out: the layers are those of the file.",
            )
    return layers


def _check(file: Path, config: LoraConfig, layers: Mapping[str, LoraLayer]) -> None:
    """ConfigError if the settings contradict the file that training starts from."""
    ranks = sorted({layer.rank for layer in layers.values()})
    alphas = sorted({layer.alpha for layer in layers.values()})
    if ranks[-1] > MOST_RANK:
        raise ConfigError(
            f"lora.init: {file} has layers of rank {ranks[-1]}, and at most {MOST_RANK} is trained",
            "It may be a LoKr, which has the full rank as a LoRA. Merge it into the model: qframe lora merge.",
        )
    wrong = []
    if config.rank is not None and ranks != [config.rank]:
        wrong.append(f"lora.rank is {config.rank}, and the file has {_listed(ranks)}")
    if config.alpha is not None and alphas != [as_float32(config.alpha)]:
        wrong.append(f"lora.alpha is {config.alpha:g}, and the file has {_listed(alphas)}")
    if config.rslora:
        wrong.append("lora.rslora is true, and the scale is that of the file")
    if config.dora != any(layer.magnitude is not None for layer in layers.values()):
        wrong.append(f"lora.dora is {str(config.dora).lower()}, and the file is {'no' if config.dora else 'a'} DoRA")
    if wrong:
        raise ConfigError(
            f"{file}: lora.init starts from this LoRA, but {'; '.join(wrong)}",
            "Leave rank, alpha and rslora out, they are taken from the file; lora.dora says whether it is a DoRA.",
        )


def _listed(values: list[int] | list[float]) -> str:
    return " and ".join(f"{value:g}" for value in values[:3]) + (" and others" if len(values) > 3 else "")


def as_new(module: nn.Module, config: LoraConfig) -> LoraConfig:
    """Return the settings of a new LoRA that needs as much memory as the one which `lora.init` starts from.

    Args:
        module: The network, or one with only some of its blocks, whose layers alone are chosen then.
        config: The settings. Without `lora.init` they are returned as they are.

    Raises:
        WeightsError: The file cannot be used.
    """
    if config.init is None:
        return config
    names = linears_of(module)
    layers = read_lora(find_lora(Path(config.init)), names=names)
    rank = max(layer.rank for layer in layers.values())
    return attrs.evolve(
        config,
        init=None,
        rank=min(rank, MOST_RANK),  # a larger one is refused when training is prepared
        alpha=None,
        rslora=False,
        targets=tuple(name for name in names if name in layers),
    )
