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
    """Return the quantiles of the sigmas that `draw_sigma` draws.

    Shifting does not change the order of sigmas, so the quantiles of the density are shifted.

    Args:
        config: The settings of `[train]`.
        schedule: Shifts the sigmas, if the density asks for it.
        tokens: The number of tokens of the target.
        fraction: Fractions in (0, 1), of any shape.

    Returns:
        For each fraction, the sigma below which this fraction of the drawn sigmas lies; shaped as `fraction`.
    """
    sigma = fraction
    if _logit_normal(config):
        sigma = logit_normal_quantile(fraction, mean=config.logit_mean, std=config.logit_std)
    return _shifted(config, schedule, tokens, sigma)


def sigma_factor(config: TrainConfig, sigma: Tensor) -> Tensor:
    """Return the factor of each sigma in the loss, shaped as `sigma`. `loss_weighting` and `sigma_floor` choose it."""
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
