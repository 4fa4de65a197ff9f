"""Toy runs whose denoiser is sharded over the processes of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch

from qframe.config.schema import TrainConfig
from qframe.interfaces import Example
from qframe.train.distributed import Processes
from qframe.train.loop import StepSetup
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.sharding import shard
from qframe.train.state import TrainingState
from tests.train.test_loop import BASE, Scene

FULL = attrs.evolve(BASE, mode="full", batch_size=2, gradient_accumulation=2, max_steps=2, ema_decay=0.9)


class ShardedScene(Scene):
    """A toy run whose denoiser is sharded over the processes."""

    def __init__(self, folder: Path, examples: list[Example], config: TrainConfig) -> None:
        super().__init__(folder, examples, config)
        denoiser = self.setup.denoiser
        type(denoiser).entered_by_forward = True
        adapter = self.state.parameters.values() if config.mode == "lora" else ()
        shard(denoiser, adapter, torch.device("cpu"), precision=config.precision)
        if config.mode == "full":  # the parameters are others now
            trained = dict(denoiser.module.named_parameters())
            average = WeightAverage(trained, config.ema_decay)
            self.state = TrainingState(trained, Optimizers(trained, config, denoiser.blocks), average)

    def sharded_setup(self, processes: Processes, **changes: Any) -> StepSetup:
        """The setup of this process, which saves nothing."""
        return attrs.evolve(self.setup, processes=processes, save=lambda: None, one_by_one=True, **changes)


def full_scene(folder: Path, examples: list[Example]) -> Scene:
    """A run of one process whose state has the tensors of a `ShardedScene` with `FULL`."""
    return Scene(folder / "alone", examples, FULL)
