"""Values of training: a record of a data set, what must be encoded of it, and the encoded example."""

from __future__ import annotations

import attrs
from torch import Tensor

from qframe.interfaces.sequences import Conditioning, shapes_of
from qframe.pictures.picture import Picture, PixelInput


@attrs.frozen(eq=False, kw_only=True)
class Record:
    """One row of a data set. Its pictures are not opened yet.

    Attributes:
        id: Names the record, and no other record of the data set.
        origin: The words by which messages name the record, for example its file and row.
        prompt: The caption, or the instruction of an edit.
        target: The picture that the model should learn to make.
        references: The pictures that the model is given.
        loss_map: An 8-bit grey picture of the target's size: the brighter a place is, the more its loss counts. Only
            the ratios of its values matter, not how bright it is overall. None counts every place alike.
        group: The name of the group whose results reports count together.
        original: The id of the record that this one repeats, so that an epoch visits it more often; empty for a record
            that repeats none. A record and its repeats have the same pictures.
    """

    id: str
    origin: str
    prompt: str
    target: Picture
    references: tuple[Picture, ...] = ()
    loss_map: Picture | None = None
    group: str = ""
    original: str = ""


@attrs.frozen(eq=False)
class TextInput:
    """A prompt and the pictures that the encoder sees with it."""

    prompt: str
    pictures: tuple[PixelInput, ...] = ()


@attrs.frozen(eq=False, kw_only=True)
class ExampleInputs:
    """The pictures and prompts that a recipe wants encoded for one record. Each becomes a cache entry of its own.

    Attributes:
        target: The picture to learn.
        references: The pictures that the denoiser is given.
        conditioning: The prompt and the pictures that the encoder sees with it.
        unconditional: The empty prompt with the same pictures, which replaces `conditioning` where the caption is
            dropped; None if the recipe has none.
        loss_map: The picture that says where the loss counts; None counts every place alike.
    """

    target: PixelInput
    references: tuple[PixelInput, ...] = ()
    conditioning: TextInput
    unconditional: TextInput | None = None
    loss_map: PixelInput | None = None


@attrs.frozen(eq=False, kw_only=True)
class Example:
    """One encoded record, ready for training. Its tensors are on the CPU if it comes from the cache.

    Attributes:
        id: The id of the record.
        target: Normalised latents of the target, [Z, h, w].
        references: Normalised latents of each reference, [Z, h, w]; their sizes may differ.
        conditioning: The encoded prompt, of one sample.
        unconditional: The encoded empty prompt, which replaces `conditioning` where the caption is dropped; None if the
            recipe has none, or if the run drops no captions.
        loss_map: Where the loss counts and how much, [h, w] in [0, 1]; None counts every place alike.
    """

    id: str
    target: Tensor = attrs.field(repr=shapes_of)
    references: tuple[Tensor, ...] = attrs.field(default=(), repr=shapes_of)
    conditioning: Conditioning
    unconditional: Conditioning | None = None
    loss_map: Tensor | None = attrs.field(default=None, repr=shapes_of)
