"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), for every family.

"Positive" is the velocity that is predicted for the prompt, "negative" the one predicted for the negative prompt. A
guide is a function that combines the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.interfaces import Guide, Velocity


def plain_guidance(scale: float) -> Guide:
    """Return a guide that combines two velocities as `negative + scale (positive - negative)`."""

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        return negative + scale * (positive - negative)

    return guide


def norm_rescaled_guidance(scale: float) -> Guide:
    """Return a guide that applies plain guidance, and then rescales each token to the norm of its positive velocity.

    The token is multiplied by |positive| / |guided|, norms over the channels, without an epsilon: the same as in
    diffusers' Qwen pipelines.
    """
    plain = plain_guidance(scale)

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        guided = plain(positive, negative)
        ratio: Tensor = positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return guided * ratio

    return guide


def guided_velocity(positive: Velocity, negative: Velocity, guide: Guide) -> Velocity:
    """Return a velocity function that calls both functions with the same tokens and sigma, and combines the results.

    Args:
        positive: The velocity for the prompt.
        negative: The velocity for the negative prompt.
        guide: Combines the two results.
    """

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        return guide(positive(tokens, sigma), negative(tokens, sigma))

    return velocity


def joined_velocity(both: Velocity, guide: Guide) -> Velocity:
    """Return a velocity function that does in one forward pass what `guided_velocity` does in two.

    Args:
        both: The velocity of the doubled batch: first all samples with their prompts, then the same samples with their
            negative prompts.
        guide: Combines the two halves of the result.
    """

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        positive, negative = both(torch.cat([tokens, tokens]), sigma).chunk(2)
        return guide(positive, negative)

    return velocity
