"""The options of `qframe bench sample` as a value. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs

HEAD = 64
"""Channels of one attention head of the random transformer."""


@attrs.frozen(kw_only=True)
class Settings:
    """The options of `qframe bench sample`: what is sampled, and how often.

    Attributes:
        family: The registered family that samples.
        size: Height and width of the picture in pixels.
        steps: The number of sampling steps.
        guidance: Whether each step has two forward passes, one with the prompt and one with the negative prompt.
        width: The number of channels of a token inside the transformer, a multiple of `HEAD`.
        layers: The number of layers of the transformer.
        repeats: How many turns are measured; in each turn every contestant runs once.
        device: Where everything is computed, such as "cpu" or "cuda".
        dtype: The dtype of all networks.
    """

    family: Literal["qwen-image", "qwen-edit"]
    size: int
    steps: int
    guidance: bool
    width: int
    layers: int
    repeats: int
    device: str
    dtype: Literal["float32", "bfloat16"]
