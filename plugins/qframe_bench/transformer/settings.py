"""What `qframe bench transformer` measures. Imports no torch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Settings:
    """The sizes of the networks and batches, and how often each contestant is measured.

    Attributes:
        s: Sides of the small pictures in tokens; every one of them is measured.
        width: Channels of the stream of tokens.
        head: Channels of one attention head.
        layers: The number of layers.
        text_width: Channels of the prompts.
        repeats: How many turns each contestant has.
        device: Where everything is computed.
        dtype: The name of torch's dtype of all tensors.
        gradient_checkpointing: Whether every contestant recomputes activations in its backward pass.
        profile: Whether operations per second and time by component are measured, too.
    """

    s: tuple[int, ...]
    width: int
    head: int
    layers: int
    text_width: int
    repeats: int
    device: str
    dtype: str
    gradient_checkpointing: bool
    profile: bool
