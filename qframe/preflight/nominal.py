"""What is assumed of pictures and prompts before any of them is opened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import attrs

from qframe.cache.lengths import FittedSize, estimated_tokens, latent_shape, text_tokens
from qframe.compose import Composition
from qframe.errors import QframeError
from qframe.interfaces import ExampleInputs, Record
from qframe.pictures.geometry import Size
from qframe.pictures.picture import Picture, PixelInput
from qframe.preflight.passes import Batch

PICTURE = (1024, 1024)
"""Height and width in pixels that are assumed for a picture whose size is not known before the recipe resizes it."""

_WORDS = 80

LOOKED_AT = 32
"""The number of records that are measured, from the first on. The largest is assumed for every example of a batch."""


def nominal_size(pixel: PixelInput) -> Size:
    """Return the size that a picture of one megapixel would be resized to, whatever the real picture's size.

    The file of the picture is not opened.
    """
    return pixel.geometry.fit(*PICTURE)


@attrs.frozen(kw_only=True)
class Largest:
    """The largest example of those that were looked at.

    Attributes:
        batch: Its shapes, for one sample.
        pixels: The size of its largest picture, in pixels.
        prompt: Its prompt.
        seen: The sizes of the pictures that the encoder sees with the prompt, in pixels.
    """

    batch: Batch
    pixels: Size
    prompt: str
    seen: tuple[Size, ...]


def largest_example(composition: Composition, inputs: Sequence[ExampleInputs], size: FittedSize) -> Largest:
    """Return the largest example, by the sum of its latent places and text tokens.

    Args:
        composition: The composition that will encode the examples.
        inputs: What the recipe wants encoded for each record; only the first 32 are looked at.
        size: Returns the height and width in which a picture is encoded.
    """
    count = composition.token_counter() or estimated_tokens
    compression = composition.specs["codec"].compression

    def measured(one: ExampleInputs) -> Largest:
        sizes = [size(pixel) for pixel in (one.target, *one.references)]
        batch = Batch(shape=latent_shape(one, size, compression), text=text_tokens(one, size, count))
        return Largest(
            batch=batch,
            pixels=max(sizes, key=lambda sides: sides[0] * sides[1]),
            prompt=one.conditioning.prompt,
            seen=tuple(size(pixel) for pixel in one.conditioning.pictures),
        )

    return max(map(measured, islice(inputs, LOOKED_AT)), key=lambda one: one.batch.tokens(1))


def nominal_inputs(composition: Composition) -> ExampleInputs:
    """Return what the recipe wants encoded for a record of pictures that are not known, with a prompt of 80 words.

    Raises:
        DataError: The recipe needs more of a record.
    """
    picture, recipe = Picture("a picture", b""), composition.recipe
    return recipe.inputs(
        Record(
            id="nominal",
            origin="a record",
            prompt=" ".join(["word"] * _WORDS),
            target=picture,
            references=(picture,) if recipe.references else (),
        )
    )


def nominal_example(composition: Composition) -> Largest | None:
    """Return the example of pictures of one megapixel, with the family's default number of text tokens.

    Returns None if the recipe has no geometry.
    """
    recipe, compression = composition.recipe, composition.specs["codec"].compression
    geometry = getattr(recipe, "geometry", None)
    if geometry is None:
        return None
    pixels = geometry.fit(*PICTURE)
    sides = (pixels[0] // compression, pixels[1] // compression)
    batch = Batch(shape=(sides, (sides,) if recipe.references else ()), text=recipe.sampling.prompt_tokens)
    try:
        text = nominal_inputs(composition).conditioning
    except QframeError:  # a recipe that needs more of a record
        return Largest(batch=batch, pixels=pixels, prompt="a picture", seen=())
    return Largest(batch=batch, pixels=pixels, prompt=text.prompt, seen=tuple(map(nominal_size, text.pictures)))


def largest_area(composition: Composition) -> int | None:
    """Return the pixels of the largest picture that the recipe makes; None if the recipe has no geometry."""
    geometry = getattr(composition.recipe, "geometry", None)
    return None if geometry is None else geometry.max_area
