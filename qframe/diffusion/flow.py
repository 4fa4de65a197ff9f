"""Rectified flow: noising, the training target, densities and loss factors of sigma.

x_sigma = (1 - sigma) x_0 + sigma eps, and the velocity v = eps - x_0 (Liu et al. 2022, "Flow Straight and
Fast", eq. 1, with time running from data at 0 to noise at 1; Esser et al. 2024, arXiv:2403.03206, eq. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma of `clean` and `noise`, both [N, ...]; sigma [] or [N], broadcast over the other axes."""
    sigma = sigma.reshape(sigma.shape + (1,) * (clean.ndim - sigma.ndim)) if sigma.ndim else sigma
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What the denoiser learns to predict: eps - x_0."""
    return noise - clean


def draw_noise(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal noise [B, ...] as diffusers' `randn_tensor` does, so that a seed gives the same noise.

    Args:
        shape: The shape of the noise.
        generator: One generator draws the batch at once; a sequence has one generator for each sample. The noise is
            drawn on the generator's device.
        device: Where the noise goes.
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
    """The exponential time shift: e^mu / (e^mu + 1/sigma - 1) (Esser et al. 2024, eq. 23, with e^mu for the ratio)."""
    scale = torch.exp(torch.tensor(mu, dtype=sigma.dtype, device=sigma.device))
    return scale * sigma / (1 + (scale - 1) * sigma)


def uniform_density(count: int, generator: torch.Generator) -> Tensor:
    """Sigmas [count] drawn evenly from (0, 1)."""
    return torch.rand(count, generator=generator).clamp(1e-5, 1 - 1e-5)


def logit_normal_density(count: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Sigmas [count] whose logit is normal (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator)).clamp(1e-5, 1 - 1e-5)


def logit_normal_quantile(fraction: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """The sigma below which this fraction in (0, 1) of `logit_normal_density` lies."""
    return torch.sigmoid(mean + std * torch.special.ndtri(fraction)).clamp(1e-5, 1 - 1e-5)


def inverse_square_factor(sigma: Tensor) -> Tensor:
    """The sigma factor 1 / sigma^2, "sigma_sqrt" of diffusers' training_utils: 1e10 at the smallest sigma drawn."""
    return sigma**-2.0


def cosmap_factor(sigma: Tensor) -> Tensor:
    """The sigma factor 2 / (pi (1 - 2 sigma + 2 sigma^2)): CosMap (Esser et al. 2024, section 3.1)."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def low_sigma_ramp(sigma: Tensor, floor: float) -> Tensor:
    """The sigma factor min(1, sigma / floor)^2: errors near the data count less; it is 1 at `floor` and above."""
    return (sigma / floor).clamp(max=1.0) ** 2
