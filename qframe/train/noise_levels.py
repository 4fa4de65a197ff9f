"""The noise levels that a run trains on, and the factor of each in the loss: `train.timestep_density` and others."""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.config.schema import TrainConfig
from qframe.diffusion.flow import (
    cosmap_factor,
    inverse_square_factor,
    logit_normal_density,
    logit_normal_quantile,
    low_sigma_ramp,
    uniform_density,
)
from qframe.interfaces import Schedule


def draw_sigma(config: TrainConfig, schedule: Schedule, tokens: int, generator: torch.Generator) -> Tensor:
    """Draw a sigma [1] for a target of `tokens` tokens."""
    if _logit_normal(config):
        sigma = logit_normal_density(1, generator, mean=config.logit_mean, std=config.logit_std)
    else:
        sigma = uniform_density(1, generator)
    return _shifted(config, schedule, tokens, sigma)


def sigma_quantile(config: TrainConfig, schedule: Schedule, tokens: int, fraction: Tensor) -> Tensor:
    """The sigmas below which these fractions in (0, 1) of what `draw_sigma` gives lie; a shift keeps the order."""
    sigma = fraction
    if _logit_normal(config):
        sigma = logit_normal_quantile(fraction, mean=config.logit_mean, std=config.logit_std)
    return _shifted(config, schedule, tokens, sigma)


def sigma_factor(config: TrainConfig, sigma: Tensor) -> Tensor:
    """The factor of each sigma in the loss, by `train.loss_weighting` and `train.sigma_floor`; shaped as `sigma`."""
    factor = torch.ones_like(sigma)
    if config.loss_weighting == "sigma-sqrt":
        factor = inverse_square_factor(sigma)
    elif config.loss_weighting == "cosmap":
        factor = cosmap_factor(sigma)
    return factor * low_sigma_ramp(sigma, config.sigma_floor) if config.sigma_floor else factor


def _logit_normal(config: TrainConfig) -> bool:
    return config.timestep_density in ("logit-normal", "shifted-logit-normal")


def _shifted(config: TrainConfig, schedule: Schedule, tokens: int, sigma: Tensor) -> Tensor:
    shifted = config.timestep_density in ("shifted", "shifted-logit-normal")
    return schedule.shift(sigma, tokens) if shifted else sigma
