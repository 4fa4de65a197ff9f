"""Checks the settings of a training run without loading weights, before encoding begins, which may take hours."""

from __future__ import annotations

from typing import Any

from qframe import adapters
from qframe.cache import DeclaredInputs
from qframe.compose import Composition
from qframe.compose.optimizers import optimizer_factory
from qframe.config.schema import Config, TrainConfig
from qframe.errors import ConfigError
from qframe.files.weight_header import GGUF
from qframe.interfaces import ExampleInputs
from qframe.plugins.registry import Registry
from qframe.train.distributed import Processes
from qframe.train.order import token_budget
from qframe.train.recomputing import checkpointing_of
from qframe.train.sharding import check_sharding


def shards(config: Config, processes: Processes) -> bool:
    """Whether the denoiser is sharded over the processes, so that no process holds all of its weights."""
    return config.train.shard == "full" and processes.world > 1


def refuse_shards(sharded: bool, method: str) -> None:
    """Raise ConfigError for a method of `Trainer` that needs all of the denoiser, if the denoiser is sharded."""
    if sharded:
        raise ConfigError(
            f"Trainer.{method}: train.shard is 'full', so no process has all of the denoiser",
            "Use what the run wrote: qframe.load(..., lora=...) or its `denoiser` folder.",
        )


def check_settings(config: Config, registry: Registry, processes: Processes, *, chosen: bool = True) -> None:
    """Check that the settings do not contradict each other, and that the optimizer's package is installed.

    Args:
        config: The settings.
        registry: The plugins.
        processes: The processes that train together.
        chosen: Whether the key `memory` has chosen what it chooses. Before that, a setting that another one needs may
            be left open.

    Raises:
        ConfigError: One of these checks fails, or `config` is no configuration.
    """
    given: Any = config  # callers in Python are not always checked by types
    if not isinstance(given, Config):
        example = f"qframe.load_config(family={given!r})" if isinstance(given, str) else "qframe.load_config(...)"
        raise ConfigError(
            f"Trainer takes a configuration, got {type(given).__name__} {given!r:.60}", f"Give it {example}."
        )
    if (config.denoiser.model or config.model or "").endswith(GGUF):
        raise ConfigError(
            "denoiser.model: weights in a GGUF file are for sampling, and cannot be trained on",
            "Train on weights in the safetensors format; denoiser.quantise makes them small.",
        )
    if config.devices and processes.world > 1:
        raise ConfigError(
            f"devices: {', '.join(config.devices)} are for one process, and there are {processes.world}",
            "Leave devices out: every process takes a GPU of its own.",
        )
    if config.train.mode == "full" and (config.lora.init or config.lora.frozen):
        raise ConfigError(
            f"lora.{'init' if config.lora.init else 'frozen'}: train.mode = 'full' trains the weights, and no LoRA",
            "Set train.mode to 'lora', or merge the LoRA into the model (qframe lora merge) and train that.",
        )
    check_keeping(config)
    if config.train.batching == "packed":
        token_budget(config.train)
    if config.train.offload_inputs and not config.train.gradient_checkpointing:
        raise ConfigError(
            "train.offload_inputs: without train.gradient_checkpointing blocks keep far more than their inputs",
            "Set train.gradient_checkpointing to true, or leave train.offload_inputs out.",
        )
    left_open = config.train.gradient_checkpointing is None and config.memory is not None and not chosen
    if config.denoiser.resident_blocks is not None and not left_open:
        check_streaming(config.train, sharded=shards(config, processes))
    optimizer_factory(config.train, registry)


def check_keeping(config: Config) -> None:
    """Check that what a run is to keep beside its checkpoints is a LoRA, and can be judged. Raises ConfigError."""
    train = config.train
    if train.mode == "full" and (train.keep_every is not None or train.keep_best):
        raise ConfigError(
            f"train.{'keep_best' if train.keep_best else 'keep_every'}: only LoRAs are kept, and train.mode is 'full'",
            "Leave it out; train.checkpoint_every and train.keep_checkpoints say how many checkpoints there are.",
        )
    if train.keep_best and config.validation.every is None:
        raise ConfigError(
            "train.keep_best: the validation loss decides what is best, and none is computed",
            "Set validation.every, and data.holdout if the data set has no records for validation.",
        )


def check_streaming(train: TrainConfig, *, sharded: bool) -> None:
    """Check that a denoiser can be trained whose weights are streamed. Raises ConfigError if it cannot."""
    key = "denoiser.resident_blocks: streamed weights"
    if train.mode == "full":
        raise ConfigError(
            f"{key} are frozen, and train.mode = 'full' trains them",
            "Train a LoRA (train.mode = 'lora'), or leave denoiser.resident_blocks out.",
        )
    if sharded:
        raise ConfigError(
            f"{key} come from the memory of the machine, and train.shard = 'full' spreads them over processes",
            "Leave one of the two out.",
        )
    if not train.gradient_checkpointing:
        raise ConfigError(
            f"{key} of a block are overwritten by those of another before the backward pass, unless the block is "
            "recomputed there",
            "Set train.gradient_checkpointing to true.",
        )


def check_composition(composition: Composition, processes: Processes) -> None:
    """Check that the denoiser can be sharded, if the settings ask for it. Raises ConfigError if it cannot."""
    if shards(composition.config, processes):
        check_sharding(composition.config, composition.classes["denoiser"])


def check_sizes(composition: Composition, inputs: ExampleInputs) -> None:
    """Check that a recipe resizes pictures to sides that codec and denoiser can take.

    The inputs of one record suffice, because a recipe resizes all pictures by the same rule. Without this check the
    mistake would only be noticed when a picture of an unfitting size is encoded.

    Raises:
        ConfigError: The multiple to which the geometry rounds sides is no multiple of the codec's compression times the
            denoiser's patch size.
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
    """Check that denoiser and recipe support the settings of gradient checkpointing, caption dropout and the LoRA.

    The denoiser is built without weights for this. If its class cannot be built so, the checks that need it are left
    out here, and the same mistakes are reported when the denoiser is prepared for training.

    Raises:
        ConfigError: One of the settings is not supported; the message names it.
    """
    config, outline = composition.config, adapters.outlined(composition)
    if config.train.gradient_checkpointing and outline is not None:
        checkpointing_of(outline.module, config.train)
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
    if outline is not None and adapters.initial_layers(outline.module, config.lora, outline.lora_presets) is None:
        adapters.resolve_targets(outline.module, config.lora.targets or (), outline.lora_presets)
    adapters.check_files(composition, adapters.frozen_files(config.lora))
