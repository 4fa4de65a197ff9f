"""Rectified flow: adding noise, the training target, drawing sigmas, and factors of the loss that depend on sigma.

Sigma is the noise level, from 0 (clean data) to 1 (pure noise). For data x_0 and noise eps,
x_sigma = (1 - sigma) x_0 + sigma eps, and the velocity is v = eps - x_0 (Liu et al. 2022, "Flow Straight and
Fast", eq. 1, with time running from data at 0 to noise at 1; Esser et al. 2024, arXiv:2403.03206, eq. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mix clean data and noise at a noise level: (1 - sigma) clean + sigma noise.

    Args:
        clean: The clean data, [N, ...].
        noise: The noise, of the same shape.
        sigma: The noise level, from 0 (clean) to 1 (noise): a scalar for all, or [N], one for each item of the first
            axis.
    """
    sigma = sigma.reshape(sigma.shape + (1,) * (clean.ndim - sigma.ndim)) if sigma.ndim else sigma
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity noise - clean, which the denoiser learns to predict."""
    return noise - clean


def draw_noise(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal noise as diffusers' `randn_tensor` does, so that a seed gives the same noise in both.

    Args:
        shape: The shape of the noise, [B, ...].
        generator: One generator draws the noise of the whole batch at once; a sequence has one generator per sample.
            The noise is drawn on the generator's device. None uses torch's default generator on `device`.
        device: The device that the noise is moved to.
        dtype: The dtype that the noise is drawn in.

    Raises:
        ValueError: A sequence does not have one generator per sample.
    """
    if generator is None or isinstance(generator, torch.Generator):
        where = generator.device if generator is not None else torch.device(device)
        return torch.randn(*shape, generator=generator, device=where, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
    rows = [torch.randn(1, *shape[1:], generator=g, device=g.device, dtype=dtype).to(device) for g in generator]
    return torch.cat(rows)


def shift_sigma(sigma: Tensor, mu: float) -> Tensor:
    """Shift noise levels towards 1 by the exponential time shift: e^mu / (e^mu + 1/sigma - 1).

    This is eq. 23 of Esser et al. 2024, with e^mu in place of the ratio of resolutions. With mu = 0 nothing
    changes, and a negative mu shifts towards 0.
    """
    scale = torch.exp(torch.tensor(mu, dtype=sigma.dtype, device=sigma.device))
    return scale * sigma / (1 + (scale - 1) * sigma)


def uniform_density(count: int, generator: torch.Generator) -> Tensor:
    """Draw sigmas [count] from the uniform distribution on (0, 1)."""
    return torch.rand(count, generator=generator).clamp(1e-5, 1 - 1e-5)


def logit_normal_density(count: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw sigmas [count] whose logit is normally distributed (Esser et al. 2024, section 3.1).

    Args:
        count: How many are drawn.
        generator: The source of random numbers.
        mean: The mean of the logit.
        std: The standard deviation of the logit.
    """
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator)).clamp(1e-5, 1 - 1e-5)


def logit_normal_quantile(fraction: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Return the sigma below which a sigma of `logit_normal_density` lies with probability `fraction`, in (0, 1)."""
    return torch.sigmoid(mean + std * torch.special.ndtri(fraction)).clamp(1e-5, 1 - 1e-5)


def inverse_square_factor(sigma: Tensor) -> Tensor:
    """Return 1 / sigma^2, by which the loss at noise level sigma is multiplied ("sigma_sqrt" in diffusers).

    At the smallest sigma that is drawn, 1e-5, it is 1e10.
    """
    return sigma**-2.0


def cosmap_factor(sigma: Tensor) -> Tensor:
    """Return the CosMap factor 2 / (pi (1 - 2 sigma + 2 sigma^2)), by which the loss at sigma is multiplied.

    It is described in Esser et al. 2024, section 3.1.
    """
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def low_sigma_ramp(sigma: Tensor, floor: float) -> Tensor:
    """Return min(1, sigma / floor)^2, by which the loss at sigma is multiplied.

    Errors at noise levels below `floor`, where the input is nearly clean, count less.
    """
    return (sigma / floor).clamp(max=1.0) ** 2
