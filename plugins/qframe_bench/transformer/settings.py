"""The options of `qframe bench transformer` as a value. Imports no torch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Settings:
    """The sizes of the networks and batches, and how often each contestant is measured.

    Attributes:
        s: Heights (and widths) of the small pictures, in tokens; one batch is measured for each of them.
        width: The number of channels of a token inside the networks.
        head: The number of channels of one attention head.
        layers: The number of layers.
        text_width: The number of channels of a prompt's token, as the text encoder would return it.
        repeats: How many turns are measured; in each turn every contestant runs once.
        device: Where everything is computed, such as "cpu" or "cuda".
        dtype: The name of the torch dtype of all tensors, such as "bfloat16".
        gradient_checkpointing: Whether every contestant recomputes activations in its backward pass.
        profile: Whether to measure operations per second and the time of each kind of operation, too.
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
