"""Classifier-free guidance, written once (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.interfaces import Guide, Velocity


def plain_guidance(scale: float) -> Guide:
    """Return the guide that computes `negative + scale (positive - negative)`."""

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        return negative + scale * (positive - negative)

    return guide


def norm_rescaled_guidance(scale: float) -> Guide:
    """Return the guide that rescales the result of plain guidance to the norm of the positive velocity, token by token.

    Diffusers' Qwen pipelines do the same: the factor is |positive| / |guided| over the channels, without an epsilon.
    """
    plain = plain_guidance(scale)

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        guided = plain(positive, negative)
        ratio: Tensor = positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return guided * ratio

    return guide


def guided_velocity(positive: Velocity, negative: Velocity, guide: Guide) -> Velocity:
    """Combine two velocities into a guided one.

    Both are computed at the same tokens and sigma, in two forward passes.
    """

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        return guide(positive(tokens, sigma), negative(tokens, sigma))

    return velocity


def joined_velocity(both: Velocity, guide: Guide) -> Velocity:
    """Make the guided velocity of one forward pass of twice the batch.

    `both` takes the tokens of all positive samples, then those of all negative ones.
    """

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        positive, negative = both(torch.cat([tokens, tokens]), sigma).chunk(2)
        return guide(positive, negative)

    return velocity
