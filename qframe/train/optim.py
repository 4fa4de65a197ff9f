"""Optimizers, learning-rate schedules and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qframe.schema import TrainConfig


class Optimizers:
    """One or two optimizers stepped as one; the learning rate is a function of the step, so it needs no state."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig, blocks: str) -> None:
        """parameters: what is trained, by name. blocks: the repeated blocks' name, whose matrices Muon takes."""
        self._config = config
        matrices = {
            name: p
            for name, p in parameters.items()
            if config.optimizer == "muon" and p.ndim == 2 and name.startswith(f"{blocks}.")
        }
        others = [p for name, p in parameters.items() if name not in matrices]
        self.parts: list[torch.optim.Optimizer] = []
        self._peaks: list[float] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(
                    list(matrices.values()),
                    lr=config.muon_learning_rate,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
            self._peaks.append(config.muon_learning_rate)
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=config.learning_rate, weight_decay=config.weight_decay))
            self._peaks.append(config.learning_rate)

    def step(self, step: int) -> float:
        """One update at optimizer step `step` (from 0); returns the learning rate of the last part."""
        factor = schedule_factor(self._config, step)
        for part, peak in zip(self.parts, self._peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * factor
            part.step()
        return self._peaks[-1] * factor

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def schedule_factor(config: TrainConfig, step: int) -> float:
    """The share of the peak learning rate at step `step` (from 0): warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
    return 1.0 - progress if config.lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class WeightAverage:
    """Exponential moving average of the trained weights, in float32.

    The decay rises with the step as min(decay, (1 + step) / (10 + step)), so that early weights are forgotten
    (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay = decay
        self.values: dict[str, Tensor] = {name: p.detach().clone().float() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            [self.values[name] for name in parameters], [p.detach().float() for p in parameters.values()], 1.0 - decay
        )
