"""Builds and steps the optimizers of a run, computes the learning rate, and keeps a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qframe.compose.optimizers import optimizer_factory
from qframe.config.schema import TrainConfig
from qframe.interfaces import OptimizerFactory


class Optimizers:
    """The optimizers of a run as one object, which steps, saves and restores all of them together.

    Attributes:
        parts: The optimizers of torch.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        blocks: str,
        *,
        factory: OptimizerFactory | None = None,
    ) -> None:
        """Build the optimizers for the parameters.

        Args:
            parameters: The trained parameters, by name.
            config: The settings of `[train]`.
            blocks: The name of the denoiser's list of repeated blocks (`Denoiser.blocks`), with which the names of the
                blocks' parameters begin.
            factory: Builds the optimizers; by default the factory that `config.optimizer` names.
        """
        self._config = config
        self.parts: list[torch.optim.Optimizer] = list(
            (factory or optimizer_factory(config)).build(
                parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay, blocks=blocks
            )
        )
        self._sharded = any(hasattr(parameter, "full_tensor") for parameter in parameters.values())
        self._peaks = [[float(group["lr"]) for group in part.param_groups] for part in self.parts]

    @property
    def skip_on_device(self) -> bool:
        """Whether `step` can leave a step out because of a tensor on the device, so that the CPU need not read it.

        The fused kernels of torch can, by the protocol of `torch.amp.GradScaler`. Others would change their moments.
        Neither can kernels be given a tensor beside shards.
        """
        fused = all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts)
        return fused and not self._sharded

    def step(self, step: int, *, steps: int | None = None, skip: Tensor | None = None) -> float:
        """Set the learning rates for an optimizer step, and make the step with all optimizers.

        Args:
            step: The number of the step, from 0.
            steps: The number of steps of the whole run; by default `config.max_steps`.
            skip: A truth value on the device; where it is true, the device changes neither parameters nor moments. It
                may only be given if `skip_on_device` is true.

        Returns:
            The learning rate of the last group of parameters of the last optimizer.
        """
        factor = schedule_factor(self._config, step, steps=steps)
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            if skip is not None:
                part.grad_scale, part.found_inf = None, skip.float()  # type: ignore[attr-defined]
            part.step()
        return self._peaks[-1][-1] * factor

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """Return the state of each optimizer, as a checkpoint stores it.

        "state" holds the values for each parameter, such as moments. "groups" holds the values for each group of
        parameters, because some optimizers keep counters there. The learning rate is left out, because it follows from
        the step.
        """
        found = []
        for part in self.parts:
            full = part.state_dict()
            groups = [{k: v for k, v in group.items() if k not in _GROUP} for group in full["param_groups"]]
            found.append({"state": full["state"], "groups": groups})
        return found

    def load(self, state: list[dict[str, Any]], *, changed: Collection[str] = ()) -> None:
        """Restore the states that the method `state` returned, exactly. Values of sharded parameters must be sharded.

        Args:
            state: The states, one for each optimizer.
            changed: The names of values of the groups that stay as they were built, because the user changed them.

        Raises:
            ValueError: The states are those of other optimizers, or of other parameters.
        """
        if len(state) != len(self.parts):
            raise ValueError(f"the state is that of {len(state)} optimizers, and there are {len(self.parts)}")
        for part, saved in zip(self.parts, state, strict=True):
            groups = part.state_dict()["param_groups"]
            stays = _GROUP.union(changed)
            kept = [{name: value for name, value in one.items() if name not in stays} for one in saved["groups"]]
            merged = [{**group, **values} for group, values in zip(groups, kept, strict=True)]
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            for index, values in saved["state"].items():
                _check_values(values, parameters[index])
            part.load_state_dict({"state": saved["state"], "param_groups": merged})
            for index, values in saved["state"].items():
                part.state[parameters[index]] = _exact(values, part.state[parameters[index]])


_GROUP = frozenset({"params", "param_names", "lr", "fused", "foreach", "capturable", "differentiable"})
"""Values of a group that are no state: its parameters, the learning rate, and the choice of kernels, which
depends on the device of this session."""


_SHAPED = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})
"""Values of a parameter that have its shape in every optimizer that has them."""


def _check_values(values: Any, parameter: Tensor) -> None:
    """ValueError if an optimizer could not go on from the values that were saved of a parameter."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or not (name in _SHAPED or name == "step"):
            continue
        fits = value.shape == parameter.shape if name in _SHAPED else value.numel() == 1
        if not fits or not value.is_floating_point() or value.itemsize < 2:
            raise ValueError(
                f"{name} has shape {list(value.shape)} and dtype {value.dtype}, of a parameter {list(parameter.shape)}"
            )


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
    """Return the factor from 0 to 1 by which the peak learning rate is multiplied at a step.

    In the first `warmup_steps` steps, the factor rises linearly to 1. After them `config.lr_schedule` decides. With p,
    the progress from 0 to 1 between the warm-up and the end of the run: "constant" is 1, "linear" is 1 - p,
    "polynomial" is (1 - p) ** lr_power, and "cosine" is (1 + cos(pi * c)) / 2, where c is the fractional part of
    p * lr_cycles, and 1 at the end. They are the factors of `diffusers.optimization`, with lr_end = 0 for "polynomial".

    Args:
        config: The settings of `[train]`.
        step: The number of the step, from 0.
        steps: The number of steps of the whole run; by default `config.max_steps`.
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
    """An exponential moving average of the trained weights, in float32.

    At each step it becomes d * average + (1 - d) * weights, where d = min(decay, (1 + step) / (10 + step)). The smaller
    d of early steps makes it forget the first weights soon. TensorFlow's ExponentialMovingAverage with num_updates has
    the same rule.

    Attributes:
        values: The averages, by the name of the parameter.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Begin with a copy of the parameters. `decay` is the largest d, from 0 to 1."""
        self._decay = decay
        self.values: dict[str, Tensor] = {name: p.detach().clone().float() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int, *, skip: Tensor | None = None) -> None:
        """Bring the average up to date with the present values of the parameters, after optimizer step `step`.

        Args:
            parameters: The parameters, by name.
            step: The number of the step, from 0.
            skip: A truth value on the device of the parameters; where it is true, the average does not change.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        if skip is not None:
            amount = torch.where(skip, 0.0, 1.0 - decay)
            for name, parameter in parameters.items():
                self.values[name].lerp_(parameter.detach().float(), amount)
            return
        torch._foreach_lerp_(
            [self.values[name] for name in parameters], [p.detach().float() for p in parameters.values()], 1.0 - decay
        )
