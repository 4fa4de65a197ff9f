"""Classifier-free guidance, written once (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.interfaces import Guide, Velocity


def plain_guidance(scale: float) -> Guide:
    """`negative + scale (positive - negative)`."""

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        return negative + scale * (positive - negative)

    return guide


def norm_rescaled_guidance(scale: float) -> Guide:
    """Plain guidance, after which each token is rescaled to the norm of its positive prediction.

    As in diffusers' Qwen pipelines: |positive| / |guided| over the channels, without an epsilon.
    """
    plain = plain_guidance(scale)

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        guided = plain(positive, negative)
        ratio: Tensor = positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return guided * ratio

    return guide


def guided_velocity(positive: Velocity, negative: Velocity, guide: Guide) -> Velocity:
    """The guided velocity of a positive and a negative one, which are both asked with the same tokens and sigma."""

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        return guide(positive(tokens, sigma), negative(tokens, sigma))

    return velocity


def joined_velocity(both: Velocity, guide: Guide) -> Velocity:
    """As `guided_velocity`, in one forward pass of twice the batch: all positive samples, then all negative ones."""

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        positive, negative = both(torch.cat([tokens, tokens]), sigma).chunk(2)
        return guide(positive, negative)

    return velocity
