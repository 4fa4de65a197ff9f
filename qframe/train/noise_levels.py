"""Which noise levels a run trains on, and what each weighs in the loss: `train.timestep_density` and its relatives."""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.config.schema import TrainConfig
from qframe.diffusion.flow import (
    cosmap_weight,
    inverse_square_weight,
    logit_normal_density,
    logit_normal_quantile,
    low_sigma_ramp,
    uniform_density,
)
from qframe.interfaces import Schedule


def draw_sigma(config: TrainConfig, schedule: Schedule, tokens: int, generator: torch.Generator) -> Tensor:
    """A sigma [1] for a target of `tokens` tokens."""
    if _logit_normal(config):
        sigma = logit_normal_density(1, generator, mean=config.logit_mean, std=config.logit_std)
    else:
        sigma = uniform_density(1, generator)
    return _shifted(config, schedule, tokens, sigma)


def sigma_quantile(config: TrainConfig, schedule: Schedule, tokens: int, share: Tensor) -> Tensor:
    """The sigmas below which these shares in (0, 1) of what `draw_sigma` gives lie; a shift keeps the order."""
    sigma = share
    if _logit_normal(config):
        sigma = logit_normal_quantile(share, mean=config.logit_mean, std=config.logit_std)
    return _shifted(config, schedule, tokens, sigma)


def sigma_weight(config: TrainConfig, sigma: Tensor) -> Tensor:
    """What each sigma weighs in the loss."""
    weight = torch.ones_like(sigma)
    if config.loss_weighting == "sigma-sqrt":
        weight = inverse_square_weight(sigma)
    elif config.loss_weighting == "cosmap":
        weight = cosmap_weight(sigma)
    return weight * low_sigma_ramp(sigma, config.sigma_floor) if config.sigma_floor else weight


def _logit_normal(config: TrainConfig) -> bool:
    return config.timestep_density in ("logit-normal", "shifted-logit-normal")


def _shifted(config: TrainConfig, schedule: Schedule, tokens: int, sigma: Tensor) -> Tensor:
    shifted = config.timestep_density in ("shifted", "shifted-logit-normal")
    return schedule.shift(sigma, tokens) if shifted else sigma
