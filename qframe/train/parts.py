"""Loads the components of a model when a stage of a training run needs them, and prepares the denoiser for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from qframe import adapters
from qframe.compose import Composition
from qframe.compose.optimizers import optimizer_factory
from qframe.compose.placement import Placement, rest_codec
from qframe.config.schema import Config, LoraConfig, TrainConfig
from qframe.interfaces import Denoiser, ForwardOptions, Parts
from qframe.plugins.registry import Registry
from qframe.progress import SILENT, Progress
from qframe.train.loop import StepSetup
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.order import BatchOrder
from qframe.train.recomputing import recompute_blocks
from qframe.train.sharding import seen_in, shard
from qframe.train.state import TrainingState
from qframe.train.streams import derived_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qframe.interfaces import Example
    from qframe.train.trainer import Trainer


class LoadedParts:
    """The components of a model that a training run has loaded so far and not released.

    Attributes:
        codec_placement: Moves the codec's weights between its device and the CPU, where they stay while the denoiser
            computes. Before the codec is loaded, it moves nothing.
    """

    def __init__(self, composition: Composition, *, sharded: bool, progress: Progress = SILENT) -> None:
        """Remember what to load, and load nothing yet.

        Args:
            composition: The components of the model.
            sharded: Whether the denoiser will be sharded. It is then loaded onto the CPU, because its device may be too
                small for all of its weights, and in the dtype of its files if they have one: so that it is mapped from
                them, and no process copies more than its own shards.
            progress: Is told what has to be made ready before the weights are loaded.
        """
        self._progress = progress
        self._composition = composition
        self._sharded = sharded
        self._parts: dict[str, Any] = {}
        self.codec_placement = Placement()

    def load(self, *roles: str) -> Parts:
        """Load the components of these roles unless they are loaded, and return all components that are loaded now."""
        composition = self._composition
        missing = [role for role in roles if role not in self._parts]
        whole = [role for role in missing if role != "denoiser" or not self._sharded]
        parts = composition.load(*whole, progress=self._progress)
        if self._sharded and "denoiser" in missing:
            unsharded = composition.load("denoiser", offloaded=True, as_stored=True, progress=self._progress)
            parts = attrs.evolve(parts, loaded_denoiser=unsharded.denoiser)
        for role in missing:
            self._parts[role] = getattr(parts, role)
        if "codec" in missing:
            live = not composition.config.cache.enabled
            self.codec_placement = rest_codec(parts.codec, composition.device("codec"), live=live)
        return attrs.evolve(parts, **{f"loaded_{role}": part for role, part in self._parts.items()})

    def release(self, *roles: str) -> None:
        """Let go of the components of these roles, so that their memory can be freed."""
        for role in roles:
            part = self._parts.pop(role, None)
            if part is not None and part.streamed is not None:
                part.streamed.free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def described(trainer: Trainer) -> str:
    """Return the `repr` of a trainer: family, model, how many records, device and step."""
    made, config = trainer.composition, trainer.config
    what = "LoRA" if config.train.mode == "lora" else "full"
    about = f"{len(trainer.records)} records, {made.device('denoiser')}, {what}, step {trainer.global_step}"
    return f"Trainer({made.family.name!r}, {made.model_name!r}, {about})"


def registered_loggers(config: Config, registry: Registry) -> dict[str, Any]:
    """Make the loggers that `logging.use` names, by name. Raises ConfigError if a logger lacks its package."""
    return {name: registry.resolve(registry.component("logger", name))() for name in config.logging.use}


def prepare_training(
    denoiser: Denoiser, config: Config, registry: Registry, shard_onto: torch.device | None, dtype: torch.dtype
) -> TrainingState:
    """Prepare a denoiser for training, and return the training state at step 0.

    In the mode "lora" a new LoRA is put on the denoiser, and its parameters are trained. In the mode "full" all weights
    of the denoiser are converted to float32 and trained.

    Args:
        denoiser: The denoiser; if it is to be sharded, it must lie on the CPU.
        config: The settings of the run.
        registry: The plugins, one of which offers the optimizer.
        shard_onto: The device to which this process's shards of the weights go; None does not shard the denoiser.
        dtype: The dtype of frozen weights. A denoiser that is to be sharded may have another one before it is.
    """
    train, module = config.train, denoiser.module
    if train.mode == "lora":
        seed = derived_seed(train.seed, "adapter")
        with seen_in(module, dtype):
            add_frozen(denoiser, config.lora)
            trained = adapters.add_lora(
                module, config.lora, denoiser.lora_presets, seed=seed, device=denoiser.execution_device
            )
    else:
        module.requires_grad_(True)
    if shard_onto is not None:
        adapter = [p for name, p in module.named_parameters() if ".lora_" in name] if train.mode == "lora" else ()
        # Quantised weights have their dtype already, and their scales keep another one.
        wanted = None if config.denoiser.quantise.use is not None else dtype
        shard(denoiser, adapter, shard_onto, dtype=wanted, precision=train.precision)
    elif train.mode == "full":
        module.float()
    if train.mode == "full":
        trained = dict(module.named_parameters())
    recompute_blocks(module, train, denoiser.execution_device)
    optimizers = Optimizers(trained, train, denoiser.blocks, factory=optimizer_factory(train, registry))
    average = WeightAverage(trained, train.ema_decay) if train.ema_decay else None
    return TrainingState(trained, optimizers, average)


def add_frozen(denoiser: Denoiser, config: LoraConfig) -> None:
    """Put the LoRAs of `lora.frozen` on a denoiser, whose blocks may be streamed."""
    if config.frozen:
        adapters.add_frozen(denoiser.module, config)
        if denoiser.streamed is not None:
            denoiser.streamed.settle()


def load_lora(denoiser: Denoiser, file: Path, scale: float, *, adapter: str) -> None:
    """Put the LoRA of a file on a denoiser, whose blocks may be streamed; see `qframe.adapters.load_lora`."""
    adapters.load_lora(denoiser.module, file, scale, adapter=adapter)
    if denoiser.streamed is not None:
        denoiser.streamed.settle()


def merge_lora(denoiser: Denoiser) -> None:
    """Merge all adapters of a denoiser, whose blocks may be streamed; see `qframe.adapters.merge_lora`."""
    if denoiser.streamed is not None:
        denoiser.streamed.rest()
    adapters.merge_lora(denoiser.module)


def step_setup(
    trainer: Trainer, train: TrainConfig, examples: Sequence[Example], order: BatchOrder, **watched: Any
) -> StepSetup:
    """Return the `StepSetup` for training a trainer's denoiser on `examples`.

    Args:
        trainer: Holds the denoiser and the other components.
        train: The settings of `[train]`.
        examples: The examples to train on.
        order: Decides which examples make which batch.
        watched: The other fields of `StepSetup`, such as `observe` and `save`, by name.
    """
    parts = trainer.load("denoiser")
    return StepSetup(
        config=train,
        denoiser=parts.denoiser,
        schedule=parts.schedule,
        patch=parts.denoiser_spec.patch,
        forward=ForwardOptions(guidance=train.guidance_scale if parts.denoiser_spec.guidance else None),
        loss_map=trainer.composition.recipe.loss_map,
        examples=examples,
        order=order,
        device=trainer.composition.device("denoiser"),
        **watched,
    )
