"""Values of training: a record of a data set, what must be encoded of it, and the encoded example."""

from __future__ import annotations

import attrs
from torch import Tensor

from qframe.interfaces.sequences import Conditioning
from qframe.pictures.picture import Picture, PixelInput


@attrs.frozen(eq=False, kw_only=True)
class Record:
    """One row of a data set, before anything is opened.

    loss_map: an 8-bit grey picture of the target's size that says where the loss counts, and how much in
    proportion (only ratios matter); None counts every place alike. group: a name that reports sum over.
    """

    id: str
    origin: str
    prompt: str
    target: Picture
    references: tuple[Picture, ...] = ()
    loss_map: Picture | None = None
    group: str = ""


@attrs.frozen(eq=False)
class TextInput:
    """A prompt and the pictures the encoder sees with it."""

    prompt: str
    pictures: tuple[PixelInput, ...] = ()


@attrs.frozen(eq=False, kw_only=True)
class ExampleInputs:
    """What a recipe wants encoded for one record. Each part is a cache entry of its own.

    unconditional: what replaces `conditioning` when the caption is dropped (same pictures, empty prompt).
    """

    target: PixelInput
    references: tuple[PixelInput, ...] = ()
    conditioning: TextInput
    unconditional: TextInput | None = None
    loss_map: PixelInput | None = None


@attrs.frozen(eq=False, kw_only=True)
class Example:
    """One encoded record, ready for training: one sample, on the CPU when it comes from the cache.

    target: [Z, h, w] normalised latents. references: each [Z, h, w], sizes of their own.
    loss_map: [h, w] float in [0, 1], or None.
    """

    id: str
    target: Tensor
    references: tuple[Tensor, ...] = ()
    conditioning: Conditioning
    unconditional: Conditioning | None = None
    loss_map: Tensor | None = None
