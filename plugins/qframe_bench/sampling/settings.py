"""What `qframe bench sample` measures. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs

HEAD = 64
"""Channels of one attention head of the random transformer."""


@attrs.frozen(kw_only=True)
class Settings:
    """What is sampled, and how often.

    Attributes:
        family: The registered family.
        size: The side of the picture in pixels.
        steps: The number of sampling steps.
        guidance: Whether each step has two forward passes, one with the prompt and one with the negative prompt.
        width: Channels of the transformer.
        layers: Layers of the transformer.
        repeats: How many turns each contestant has.
        device: Where everything is computed.
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
