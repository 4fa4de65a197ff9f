"""Optimizers, learning-rate schedules and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qframe.config.schema import TrainConfig
from qframe.interfaces import OptimizerFactory
from qframe.plugins.registry import Registry, load_registry
from qframe.train.sharding import sharded_state


def optimizer_factory(config: TrainConfig, registry: Registry | None = None) -> OptimizerFactory:
    """The factory of `train.optimizer`. ConfigError for an unknown name, or for a package that is not installed."""
    registry = registry or load_registry()
    offer = registry.offer("optimizer", config.optimizer)
    factory = offer.implementation(OptimizerFactory)
    options = config.optimizer_options
    if options is None and (default := offer.settings()) is not None:
        options = default()
    built: OptimizerFactory = factory(options)
    return built


class Optimizers:
    """All optimizers of a run, stepped together. No checkpoint holds the learning rate, as the step decides it."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        blocks: str,
        *,
        factory: OptimizerFactory | None = None,
    ) -> None:
        """Build the optimizers.

        Args:
            parameters: The trained parameters, by name.
            config: The settings of `[train]`.
            blocks: The name of the repeated blocks, which the names of their parameters begin with.
            factory: Builds the optimizers; by default the one of `config.optimizer`.
        """
        self._config = config
        self.parts: list[torch.optim.Optimizer] = list(
            (factory or optimizer_factory(config)).build(
                parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay, blocks=blocks
            )
        )
        self._peaks = [[float(group["lr"]) for group in part.param_groups] for part in self.parts]

    def step(self, step: int, *, steps: int | None = None) -> float:
        """Make optimizer step `step` (from 0) of `steps`, by default `config.max_steps`.

        Returns the learning rate of the last group of parameters.
        """
        factor = schedule_factor(self._config, step, steps=steps)
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
        return self._peaks[-1][-1] * factor

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """The state of each optimizer that a checkpoint holds: by parameter, and what its groups hold.

        Groups are kept because some optimizers count and estimate there. The learning rate is left out, as the step
        decides it.
        """
        found = []
        for part in self.parts:
            full = part.state_dict()
            groups = [{k: v for k, v in group.items() if k not in _GROUP} for group in full["param_groups"]]
            found.append({"state": full["state"], "groups": groups})
        return found

    def load(self, state: list[dict[str, Any]]) -> None:
        """Restore what `state` returned, to the bit. ValueError if other parameters or optimizers made it."""
        if len(state) != len(self.parts):
            raise ValueError(f"the state is that of {len(state)} optimizers, and there are {len(self.parts)}")
        for part, saved in zip(self.parts, state, strict=True):
            groups = part.state_dict()["param_groups"]
            merged = [{**group, **kept} for group, kept in zip(groups, saved["groups"], strict=True)]
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            shared = {index: sharded_state(values, parameters[index]) for index, values in saved["state"].items()}
            part.load_state_dict({"state": shared, "param_groups": merged})
            for index, values in shared.items():
                part.state[parameters[index]] = _exact(values, part.state[parameters[index]])


_GROUP = frozenset({"params", "param_names", "lr"})


def _exact(saved: Any, loaded: Any) -> Any:
    """`loaded` with the dtypes of `saved`: torch casts whatever floats it loads to the dtype of their parameter."""
    if isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, Mapping):  # bitsandbytes wraps a part of what it saves, and unwraps it as it loads
        return {**loaded, **{name: _exact(value, loaded[name]) for name, value in saved.items() if name in loaded}}
    if isinstance(saved, list | tuple):
        return type(saved)(_exact(a, b) for a, b in zip(saved, loaded, strict=True))
    return saved


def schedule_factor(config: TrainConfig, step: int, *, steps: int | None = None) -> float:
    """The fraction of the peak learning rate at step `step` (from 0) of `steps`: warm-up, then the schedule.

    After the warm-up these are the factors of `diffusers.optimization` (with lr_end = 0 for the polynomial).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    last = steps or config.max_steps
    progress = min((step - config.warmup_steps) / max(last - config.warmup_steps, 1), 1.0)
    if config.lr_schedule == "cosine":
        within = progress * config.lr_cycles % 1.0 if progress < 1.0 else 1.0
        return 0.5 * (1.0 + math.cos(math.pi * within))
    return math.pow(1.0 - progress, config.lr_power if config.lr_schedule == "polynomial" else 1.0)


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
