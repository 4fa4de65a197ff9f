"""Rectified flow: noising, the training target, timestep densities and loss weights.

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
    """Standard normal noise [B, ...], drawn as diffusers' `randn_tensor` draws it, so that a seed gives the same.

    One generator draws the whole batch at once, a sequence draws sample by sample. Draws happen on the
    generator's device, in `dtype`. ValueError if a sequence does not have one generator per sample.
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


def logit_normal_quantile(share: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """The sigma below which this share in (0, 1) of `logit_normal_density` lies."""
    return torch.sigmoid(mean + std * torch.special.ndtri(share)).clamp(1e-5, 1 - 1e-5)


def inverse_square_weight(sigma: Tensor) -> Tensor:
    """Loss weight 1 / sigma^2, "sigma_sqrt" of diffusers' training_utils: 1e10 at the smallest sigma that is drawn."""
    return sigma**-2.0


def cosmap_weight(sigma: Tensor) -> Tensor:
    """Loss weight 2 / (pi (1 - 2 sigma + 2 sigma^2)): CosMap (Esser et al. 2024, section 3.1)."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def low_sigma_ramp(sigma: Tensor, floor: float) -> Tensor:
    """Loss weight min(1, sigma / floor)^2: a flow model's error near the data counts less, 1 at `floor` and above."""
    return (sigma / floor).clamp(max=1.0) ** 2
