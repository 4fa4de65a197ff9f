"""Inputs to encoded parts: pictures opened, fitted and batched by shape, prompts with their pictures.

Used by the cache, which keeps the results, and by live training, which does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from qframe.cache.declared import DeclaredInputs
from qframe.errors import DataError, NumericsError, PluginError
from qframe.interfaces import (
    Conditioning,
    Encoder,
    Example,
    ExampleInputs,
    LatentCodec,
    Parts,
    Record,
    TextInput,
    TokenCounter,
)
from qframe.pictures.geometry import Size
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import open_fitted, open_weight, picture_size, to_pixels

_T = TypeVar("_T")

WINDOW = 4
"""Batches' worth of inputs that are opened together: enough to find equal shapes, few enough to hold."""

Shape = tuple[tuple[int, int], tuple[tuple[int, int], ...]]
"""Sides (h, w) of the target's latents, and of each reference's."""


def encode_pixels(
    codec: LatentCodec, inputs: Sequence[PixelInput], *, batch_size: int, channels: int = 3
) -> list[Tensor]:
    """Latents [Z, h, w] of each input, in order, on the CPU, in the dtype the codec gives.

    channels: `CodecSpec.pixel_channels`, 3 for RGB and 4 for RGBA. Pictures of one size go together, at most
    `batch_size` at once. DataError names a picture that cannot be used, NumericsError those whose latents are
    not finite.
    """
    results: list[Tensor | None] = [None] * len(inputs)
    for window in windows(len(inputs), batch_size):
        images = {index: open_fitted(inputs[index], channels=channels) for index in window}
        for group in _groups(window, {index: image.size for index, image in images.items()}, batch_size):
            pixels = torch.stack([to_pixels(images[index]) for index in group])  # [B, channels, H, W]
            with torch.no_grad():
                latents = codec.encode(pixels)
            if latents.ndim != 4 or latents.shape[0] != len(group):
                raise PluginError(
                    f"{type(codec).__name__}.encode made {tuple(latents.shape)} of {len(group)} pictures, "
                    "expected [B, Z, h, w]"
                )
            _require_finite(latents, [inputs[index].picture.origin for index in group])
            for index, latent in zip(group, latents.cpu(), strict=True):
                results[index] = latent
    return _all_there(results)


def encode_text(encoder: Encoder, inputs: Sequence[TextInput], *, batch_size: int) -> list[Conditioning]:
    """Conditioning of each input alone, in order, on the CPU, in the dtype the encoder gives.

    Prompts with pictures of the same sizes go together, at most `batch_size` at once. DataError names a picture
    that cannot be used, NumericsError the prompts whose embeddings are not finite.
    """
    results: list[Conditioning | None] = [None] * len(inputs)
    for window in windows(len(inputs), batch_size):
        images = {index: [open_fitted(picture) for picture in inputs[index].pictures] for index in window}
        # Neighbours in length: an encoder that pads has less to pad.
        ordered = sorted(window, key=lambda index: len(inputs[index].prompt))
        sizes = {index: tuple(image.size for image in seen) for index, seen in images.items()}
        for group in _groups(ordered, sizes, batch_size):
            prompts = [inputs[index].prompt for index in group]
            with torch.no_grad():
                encoded = encoder.encode(prompts, [images[index] for index in group])
            if encoded.batch_size != len(group):
                raise PluginError(
                    f"{type(encoder).__name__}.encode gave conditioning of {encoded.batch_size} samples "
                    f"for {len(group)} prompts"
                )
            _require_finite(encoded.embeds, [repr(prompt) for prompt in prompts])
            for index, one in zip(group, encoded.to("cpu").split(), strict=True):
                results[index] = one
    return _all_there(results)


def encode_weight(weight: PixelInput, compression: int) -> Tensor:
    """[h, w] float32 in [0, 1]: the mean of a weight picture over the pixels of each latent place.

    compression: `CodecSpec.compression`. DataError if it does not divide the picture's sides.
    """
    grey = open_weight(weight)  # [H, W]
    height, width = grey.shape
    if height % compression or width % compression:
        raise DataError(
            f"{weight.picture.origin}: a weight map of {width} x {height} pixels has no whole latent places of "
            f"{compression} x {compression}",
            "This is a bug in a recipe: its geometry must fit the codec.",
        )
    return avg_pool2d(grey[None], compression)[0]


def encode_examples(
    inputs: Sequence[ExampleInputs], ids: Sequence[str], parts: Parts, *, batch_size: int = 8
) -> list[Example]:
    """The examples of `inputs`, encoded now. Encoder and codec must be loaded."""
    pixels = [pixel for one in inputs for pixel in (one.target, *one.references)]
    texts = [text for one in inputs for text in (one.conditioning, one.unconditional) if text is not None]
    channels = parts.codec_spec.pixel_channels
    latents = iter(encode_pixels(parts.codec, pixels, batch_size=batch_size, channels=channels))
    conditionings = iter(encode_text(parts.encoder, texts, batch_size=batch_size))
    compression = parts.codec_spec.compression
    return [
        make_example(
            id=id_,
            target=next(latents),
            references=tuple(next(latents) for _ in one.references),
            conditioning=next(conditionings),
            unconditional=None if one.unconditional is None else next(conditionings),
            loss_map=None if one.loss_map is None else encode_weight(one.loss_map, compression),
        )
        for one, id_ in zip(inputs, ids, strict=True)
    ]


def make_example(
    *,
    id: str,  # noqa: A002 (the name of Example's field)
    target: Tensor,
    references: tuple[Tensor, ...],
    conditioning: Conditioning,
    unconditional: Conditioning | None,
    loss_map: Tensor | None,
) -> Example:
    """The example of parts that were encoded apart. DataError if the weight map is not of the target's size."""
    if loss_map is not None and loss_map.shape != target.shape[-2:]:
        raise DataError(
            f"example {id}: its weight map covers {tuple(loss_map.shape)} latent places, its target "
            f"{tuple(target.shape[-2:])}",
            "A weight map has the size of its target picture.",
        )
    return Example(
        id=id,
        target=target,
        references=references,
        conditioning=conditioning,
        unconditional=unconditional,
        loss_map=loss_map,
    )


class LiveExamples(Sequence[Example]):
    """Examples that are encoded every time they are asked for: training without a cache."""

    def __init__(
        self,
        inputs: DeclaredInputs,
        parts: Parts,
        *,
        counter: TokenCounter | None = None,
    ) -> None:
        """inputs: what the recipe wants encoded for each record.

        counter: `Encoder.token_counter`; without one, `text_length` is an estimate.
        """
        self._inputs = inputs
        self._records = inputs.records
        self._parts = parts
        self._count = counter or estimated_tokens

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are of no use here
        return encode_examples([self._inputs[index]], [self._records[index].id], self._parts)[0]

    def digest(self) -> str:
        """As `CachedExamples.digest`: ids, prompts and the bytes of every picture."""
        return content_digest((record.id for record in self._records), map(_content, self._records))

    def shape(self, index: int) -> Shape:
        """As `CachedExamples.shape`, from the pictures' headers: nothing is decoded or encoded."""
        return latent_shape(self._inputs[index], fitted_size, self._parts.codec_spec.compression)

    def text_length(self, index: int) -> int:
        """As `CachedExamples.text_length`: counted, or estimated where the encoder has no counter."""
        return text_tokens(self._inputs[index], fitted_size, self._count)


FittedSize = Callable[[PixelInput], Size]
"""The size in pixels that an input has once it is brought into its geometry."""


def fitted_size(pixel: PixelInput) -> Size:
    """(height, width) of an input in its geometry, from the picture's header."""
    return pixel.geometry.fit(*picture_size(pixel.picture))


def latent_shape(inputs: ExampleInputs, size: FittedSize, compression: int) -> Shape:
    """Latent sides of what a recipe wants encoded. compression: `CodecSpec.compression`."""

    def latent(pixel: PixelInput) -> tuple[int, int]:
        height, width = size(pixel)
        return height // compression, width // compression

    return latent(inputs.target), tuple(latent(pixel) for pixel in inputs.references)


def text_tokens(inputs: ExampleInputs, size: FittedSize, count: TokenCounter) -> int:
    """Text tokens of the caption, or of the empty prompt that may replace it, whichever are more."""
    texts = [text for text in (inputs.conditioning, inputs.unconditional) if text is not None]
    return max(count(text.prompt, [size(pixel) for pixel in text.pictures]) for text in texts)


def estimated_tokens(prompt: str, sizes: Sequence[Size]) -> int:
    """Text tokens of a prompt whose encoder has no counter: its bytes, which no tokeniser makes more tokens of.

    What a template adds, and pictures that the encoder looks at, are not in it: only encoding tells.
    """
    return max(len(prompt.encode()), 1)


def content_digest(ids: Iterable[str], contents: Iterable[str]) -> str:
    """sha256 over the examples of a data set, in order."""
    total = hashlib.sha256()
    for name, content in zip(ids, contents, strict=True):
        total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def _content(record: Record) -> str:
    pictures = (record.target, *record.references, record.loss_map)
    return repr((record.prompt, [picture.digest() for picture in pictures if picture is not None]))


def windows(count: int, batch_size: int) -> list[range]:
    """`range(count)` in the stretches that are encoded together.

    The same inputs in the same order always share a batch, so that a cache whose build was interrupted ends
    up with the same bits as one that was not.
    """
    size = WINDOW * batch_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _groups(indices: Sequence[int], shapes: Mapping[int, Hashable], batch_size: int) -> list[list[int]]:
    """`indices` in groups of equal shape, at most `batch_size` each; shapes in the order they are first seen."""
    alike: dict[Hashable, list[int]] = {}
    for index in indices:
        alike.setdefault(shapes[index], []).append(index)
    return [members[i : i + batch_size] for members in alike.values() for i in range(0, len(members), batch_size)]


def _require_finite(encoded: Tensor, names: Sequence[str]) -> None:
    if not torch.isfinite(encoded).all():
        raise NumericsError(
            f"encoding gave values that are not finite, for one of: {', '.join(names)}",
            "Encode in float32 or bfloat16 (dtype), or leave the sample out.",
        )


def _all_there(results: Sequence[_T | None]) -> list[_T]:
    return [result for result in results if result is not None]
