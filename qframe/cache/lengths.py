"""Predicts the size of an example's latents and its number of text tokens, without decoding or encoding anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qframe.interfaces import ExampleInputs, TokenCounter
from qframe.pictures.geometry import Size
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import picture_size

Shape = tuple[tuple[int, int], tuple[tuple[int, int], ...]]
"""The sides (h, w) of the target's latents, and a tuple of the sides of each reference's latents, in latent cells."""

FittedSize = Callable[[PixelInput], Size]
"""A function that returns the (height, width) in pixels to which a picture's geometry resizes it."""


def fitted_size(pixel: PixelInput) -> Size:
    """Return the (height, width) in pixels to which a picture is resized. Only the picture's header is read."""
    return pixel.geometry.fit(*picture_size(pixel.picture))


def latent_shape(inputs: ExampleInputs, size: FittedSize, compression: int) -> Shape:
    """Return the sides of the latents that an example's pictures will have.

    Args:
        inputs: The pictures and prompts that a recipe wants encoded for a record.
        size: Returns the size of a picture after resizing, for example `fitted_size`.
        compression: `CodecSpec.compression`, the side of one latent cell in pixels.
    """

    def latent(pixel: PixelInput) -> tuple[int, int]:
        height, width = size(pixel)
        return height // compression, width // compression

    return latent(inputs.target), tuple(latent(pixel) for pixel in inputs.references)


def text_tokens(inputs: ExampleInputs, size: FittedSize, count: TokenCounter) -> int:
    """Return the number of text tokens of an example's caption, or of its empty prompt if that one has more.

    Args:
        inputs: The pictures and prompts that a recipe wants encoded for a record.
        size: Returns the size, after resizing, of a picture that the encoder sees.
        count: Counts the tokens of a prompt together with the pictures that the encoder sees, given their sizes.
    """
    texts = [text for text in (inputs.conditioning, inputs.unconditional) if text is not None]
    return max(count(text.prompt, [size(pixel) for pixel in text.pictures]) for text in texts)


def estimated_tokens(prompt: str, sizes: Sequence[Size]) -> int:
    """Estimate the number of text tokens of a prompt, for an encoder that cannot count them: the prompt's UTF-8 bytes.

    A tokeniser does not make more tokens than bytes. The estimate leaves out the tokens of the encoder's template and
    those of the pictures, and therefore does not use `sizes`.
    """
    return max(len(prompt.encode()), 1)
