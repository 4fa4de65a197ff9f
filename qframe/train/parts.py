"""The parts of a training run: loaded when a stage needs them, and the denoiser made ready for its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from qframe import adapters
from qframe.compose import Composition
from qframe.compose.placement import Placement, rest_codec
from qframe.config.schema import Config, TrainConfig
from qframe.interfaces import Denoiser, ForwardOptions, Parts
from qframe.plugins.registry import Registry
from qframe.train.checks import gradient_checkpointing
from qframe.train.loop import StepSetup
from qframe.train.optim import Optimizers, WeightAverage, optimizer_factory
from qframe.train.order import BatchOrder
from qframe.train.sharding import shard
from qframe.train.state import TrainingState
from qframe.train.streams import derived_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qframe.interfaces import Example
    from qframe.train.trainer import Trainer


class LoadedParts:
    """The parts that are loaded at the moment.

    Attributes:
        codec_placement: Moves the codec's weights between its device and the CPU, where they rest while the denoiser
            computes.
    """

    def __init__(self, composition: Composition, *, sharded: bool) -> None:
        """`sharded`: the denoiser is loaded onto the CPU, since all of it may not fit on its device."""
        self._composition = composition
        self._sharded = sharded
        self._parts: dict[str, Any] = {}
        self.codec_placement = Placement()

    def load(self, *roles: str) -> Parts:
        """The parts with (at least) these roles loaded; roles that were loaded before are kept."""
        composition = self._composition
        missing = [role for role in roles if role not in self._parts]
        parts = composition.load(*(role for role in missing if role != "denoiser" or not self._sharded))
        if self._sharded and "denoiser" in missing:
            unsharded = composition.load("denoiser", offloaded=True)
            parts = attrs.evolve(parts, loaded_denoiser=unsharded.denoiser)
        for role in missing:
            self._parts[role] = getattr(parts, role)
        if "codec" in missing:
            live = not composition.config.cache.enabled
            self.codec_placement = rest_codec(parts.codec, composition.device("codec"), live=live)
        return attrs.evolve(parts, **{f"loaded_{role}": part for role, part in self._parts.items()})

    def release(self, *roles: str) -> None:
        """Forget loaded parts, so that their memory is free."""
        for role in roles:
            self._parts.pop(role, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def prepare_training(
    denoiser: Denoiser, config: Config, registry: Registry, shard_onto: torch.device | None
) -> TrainingState:
    """Put on the denoiser what is trained (a new LoRA, or all of its weights), and make its optimizers: at step 0.

    `shard_onto` is the device that this process's shards go to; None does not shard.
    """
    train, module = config.train, denoiser.module
    if train.mode == "lora":
        seed = derived_seed(train.seed, "adapter")
        trained = adapters.add_lora(module, config.lora, denoiser.lora_presets, seed=seed)
    else:
        module.requires_grad_(True).float()
    if shard_onto is not None:
        shard(denoiser, trained.values() if train.mode == "lora" else module.parameters(), shard_onto)
    if train.mode == "full":
        trained = dict(module.named_parameters())
    if train.gradient_checkpointing:
        gradient_checkpointing(module)()
    optimizers = Optimizers(trained, train, denoiser.blocks, factory=optimizer_factory(train, registry))
    average = WeightAverage(trained, train.ema_decay) if train.ema_decay else None
    return TrainingState(trained, optimizers, average)


def step_setup(
    trainer: Trainer, train: TrainConfig, examples: Sequence[Example], order: BatchOrder, **watched: Any
) -> StepSetup:
    """The setup of a trainer's steps over `examples` in this order. `watched`: the further fields of `StepSetup`."""
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
