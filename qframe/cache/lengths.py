"""How long an example will be, from the headers of its pictures and its prompt: nothing is decoded or encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qframe.interfaces import ExampleInputs, TokenCounter
from qframe.pictures.geometry import Size
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import picture_size

Shape = tuple[tuple[int, int], tuple[tuple[int, int], ...]]
"""The sides (h, w) of the target's latents, and those of each reference's latents."""

FittedSize = Callable[[PixelInput], Size]
"""Returns the (height, width) in pixels that a picture has after it was brought into its geometry."""


def fitted_size(pixel: PixelInput) -> Size:
    """Return the (height, width) in pixels that a picture is resized to; only its header is read."""
    return pixel.geometry.fit(*picture_size(pixel.picture))


def latent_shape(inputs: ExampleInputs, size: FittedSize, compression: int) -> Shape:
    """Return the sides of the latents that an example's pictures will have.

    Args:
        inputs: What a recipe wants encoded of a record.
        size: Tells the size of each picture, for example `fitted_size`.
        compression: `CodecSpec.compression`, pixels along a side of one latent place.
    """

    def latent(pixel: PixelInput) -> tuple[int, int]:
        height, width = size(pixel)
        return height // compression, width // compression

    return latent(inputs.target), tuple(latent(pixel) for pixel in inputs.references)


def text_tokens(inputs: ExampleInputs, size: FittedSize, count: TokenCounter) -> int:
    """Return the text tokens of the caption, or of the empty prompt that may replace it, whichever are more.

    Args:
        inputs: What a recipe wants encoded of a record.
        size: Tells the size of each picture that the encoder sees.
        count: Counts the tokens of a prompt with pictures of these sizes.
    """
    texts = [text for text in (inputs.conditioning, inputs.unconditional) if text is not None]
    return max(count(text.prompt, [size(pixel) for pixel in text.pictures]) for text in texts)


def estimated_tokens(prompt: str, sizes: Sequence[Size]) -> int:
    """Estimate the text tokens of a prompt whose encoder has no counter, by the number of its bytes.

    No tokeniser makes more tokens than bytes. What an encoder's template adds, and the tokens of pictures that the
    encoder sees, are not in the estimate: only encoding tells them.
    """
    return max(len(prompt.encode()), 1)
