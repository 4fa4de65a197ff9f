"""The checks of a training run that need no weights: they run before anything is encoded, which may take hours."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qframe import adapters
from qframe.cache import DeclaredInputs
from qframe.compose import Composition
from qframe.config.schema import Config
from qframe.errors import ConfigError
from qframe.interfaces import ExampleInputs
from qframe.plugins.registry import Registry
from qframe.train.distributed import Processes
from qframe.train.optim import optimizer_factory
from qframe.train.order import token_budget
from qframe.train.sharding import check_sharding


def shards(config: Config, processes: Processes) -> bool:
    """Whether the denoiser is sharded over the processes, so that no process holds all of its weights."""
    return config.train.shard == "full" and processes.world > 1


def check_settings(config: Config, registry: Registry, processes: Processes) -> None:
    """ConfigError for settings that contradict each other, or for an optimizer whose package is not installed."""
    if config.devices and processes.world > 1:
        raise ConfigError(
            f"devices: {', '.join(config.devices)} are for one process, and there are {processes.world}",
            "Leave devices out: every process takes a GPU of its own.",
        )
    if config.train.batching == "packed":
        token_budget(config.train)
    optimizer_factory(config.train, registry)


def check_composition(composition: Composition, processes: Processes) -> None:
    """ConfigError if the denoiser is to be sharded and cannot be."""
    if shards(composition.config, processes):
        check_sharding(
            composition.config,
            composition.classes["denoiser"],
            quantised="denoiser" in composition.quantisers,
        )


def check_sizes(composition: Composition, inputs: ExampleInputs) -> None:
    """ConfigError if the sides of the pictures of a record are no multiples of what codec and denoiser take.

    One record stands for all, because a recipe has one geometry. Without this check only some pictures would show the
    mistake, and only once they are encoded.
    """
    needed = composition.specs["codec"].compression * composition.specs["denoiser"].patch
    for pixels in (inputs.target, *inputs.references):
        if pixels.geometry.multiple % needed:
            raise ConfigError(
                f"the recipe brings pictures to multiples of {pixels.geometry.multiple} pixels, codec and denoiser "
                f"take multiples of {needed}",
                f"Set recipe.multiple to a multiple of {needed}.",
            )


def check_training(composition: Composition, inputs: DeclaredInputs) -> None:
    """ConfigError for what the denoiser or the recipe cannot be trained with.

    The denoiser is looked at as an outline, without weights. Where it has no outline, loading it tells the same later.
    """
    config, outline = composition.config, adapters.outlined(composition)
    if config.train.gradient_checkpointing and outline is not None:
        gradient_checkpointing(outline.module)
    if config.train.caption_dropout and inputs[0].unconditional is None:
        raise ConfigError(
            f"train.caption_dropout: the recipe of {config.family} encodes no empty prompt",
            "Set train.caption_dropout to 0.",
        )
    if config.train.mode != "lora":
        return
    if config.lora.dora and "denoiser" in composition.quantisers:
        raise ConfigError(
            "lora.dora: the denoiser is quantised, and DoRA needs the exact lengths of its rows",
            "Set lora.dora to false, or leave denoiser.quantise out.",
        )
    if outline is not None:
        adapters.resolve_targets(outline.module, config.lora.targets, outline.lora_presets)


def gradient_checkpointing(module: torch.nn.Module) -> Callable[[], None]:
    """The function that turns gradient checkpointing on in a network. ConfigError if the network has none."""
    enable: Callable[[], None] | None = getattr(module, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ConfigError("train.gradient_checkpointing: this denoiser does not support it", "Set it to false.")
    return enable
