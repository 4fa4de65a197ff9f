"""Names of the latent space and the text space of Qwen-Image. Imports no torch.

Before components are loaded together, qframe checks by these names whether they fit: whether, for example, the denoiser
was trained on the latents of this codec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

TEXT_SPACE = "qwen2.5-vl"
"""The name of the text space whose vectors are the last hidden states of Qwen2.5-VL."""

# Defaults of diffusers' AutoencoderKLQwenImage, equal to vae/config.json of Qwen/Qwen-Image.
PUBLISHED_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
PUBLISHED_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def latent_space(vae_config: Mapping[str, Any]) -> str:
    """Return the name of the latent space that a vae/config.json describes.

    The name is "qwen-image" if the mean and standard deviation of the latents are the published ones. Otherwise it is
    "qwen-image:" and eight hexadecimal digits of a digest of both.

    Args:
        vae_config: The content of the file vae/config.json.
    """
    mean = tuple(float(value) for value in vae_config.get("latents_mean", PUBLISHED_MEAN))
    std = tuple(float(value) for value in vae_config.get("latents_std", PUBLISHED_STD))
    if (mean, std) == (PUBLISHED_MEAN, PUBLISHED_STD):
        return "qwen-image"
    text = json.dumps([vae_config.get("z_dim", len(PUBLISHED_MEAN)), mean, std])
    return f"qwen-image:{hashlib.sha256(text.encode()).hexdigest()[:8]}"
