"""Encodes the pictures, prompts and loss maps that a recipe declares, in batches.

The cache calls these functions and stores the results. Training without a cache calls them whenever it needs an
example, and stores nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from qframe.diffusion.gradients import without_gradients
from qframe.errors import DataError, NumericsError, PluginError
from qframe.interfaces import (
    Conditioning,
    Encoder,
    Example,
    ExampleInputs,
    LatentCodec,
    Parts,
    TextInput,
)
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import open_loss_map, to_pixels
from qframe.pictures.pool import open_groups

_T = TypeVar("_T")

_MUCH_LONGER = 4
_ORDINARY = 512
"""Prompts of up to this many characters are never encoded apart because of their lengths."""
_ASPECT = 1.3
"""The factor by which the proportions of a loss map in latent cells may differ from its target's. Those of the pictures
may differ by 5 %, which is checked where their sizes are known; the sides of small latents are rounded by more."""
WINDOW = 4
"""The number of batches whose pictures are opened together: enough to find pictures of equal size, few enough to fit
in memory."""


def encode_pixels(
    codec: LatentCodec,
    inputs: Sequence[PixelInput],
    *,
    batch_size: int,
    channels: int = 3,
    opened: Iterator[list[Image.Image]] | None = None,
) -> list[Tensor]:
    """Encode pictures into latents. Pictures of equal size are encoded together, as one batch.

    Args:
        codec: The codec (the VAE), with its weights loaded.
        inputs: The pictures, each with the geometry that decides the size to which it is resized.
        batch_size: The most pictures that are encoded together.
        channels: `CodecSpec.pixel_channels`, 3 for RGB or 4 for RGBA.
        opened: Yields the opened pictures of each of the `windows` of `inputs`; by default they are opened here.

    Returns:
        The latents [Z, h, w] of each picture, in the order of `inputs`, on the CPU, in the dtype that the codec
        returns.

    Raises:
        DataError: A picture cannot be used; the message names it.
        NumericsError: Latents are not finite; the message names the pictures of their batch.
        PluginError: The codec does not return latents [B, Z, h, w] for a batch of B pictures.
    """
    results: list[Tensor | None] = [None] * len(inputs)
    if opened is None:
        own = open_groups(([inputs[i] for i in w] for w in windows(len(inputs), batch_size)), channels=channels)
        with closing(own):
            return encode_pixels(codec, inputs, batch_size=batch_size, channels=channels, opened=own)
    for window in windows(len(inputs), batch_size):
        images = dict(zip(window, next(opened), strict=True))
        for group in _groups(window, {index: image.size for index, image in images.items()}, batch_size):
            pixels = torch.stack([to_pixels(images[index]) for index in group])  # [B, channels, H, W]
            with without_gradients():
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


def encode_text(
    encoder: Encoder,
    inputs: Sequence[TextInput],
    *,
    batch_size: int,
    opened: Iterator[list[Image.Image]] | None = None,
) -> list[Conditioning]:
    """Encode prompts into conditioning. Prompts whose pictures have equal sizes are encoded together, as one batch.

    Args:
        encoder: The text encoder, with its weights loaded.
        inputs: The prompts, each with the pictures that the encoder sees beside it.
        batch_size: The most prompts that are encoded together.
        opened: Yields the opened pictures of the prompts of each of the `windows` of `inputs`, one after another; by
            default they are opened here.

    Returns:
        The conditioning of each prompt, in the order of `inputs`, on the CPU, in the dtype that the encoder returns.

    Raises:
        DataError: A picture cannot be used; the message names it.
        NumericsError: Embeddings are not finite; the message names the prompts of their batch.
        PluginError: The encoder returns conditioning of more or fewer samples than it was given prompts.
    """
    results: list[Conditioning | None] = [None] * len(inputs)
    if opened is None:
        pictures = open_groups([p for i in w for p in inputs[i].pictures] for w in windows(len(inputs), batch_size))
        with closing(pictures):
            return encode_text(encoder, inputs, batch_size=batch_size, opened=pictures)
    for window in windows(len(inputs), batch_size):
        seen = iter(next(opened))
        images = {index: [next(seen) for _ in inputs[index].pictures] for index in window}
        # Prompts of similar length go together, so that an encoder that pads has less to pad.
        ordered = sorted(window, key=lambda index: len(inputs[index].prompt))
        sizes = {index: tuple(image.size for image in own) for index, own in images.items()}
        lengths = {index: len(inputs[index].prompt) for index in ordered}
        alike = _groups(ordered, sizes, batch_size)
        for group in (part for members in alike for part in _of_like_length(members, lengths)):
            prompts = [inputs[index].prompt for index in group]
            with without_gradients():
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


def encode_loss_map(loss_map: PixelInput, compression: int) -> Tensor:
    """Open a loss map and average it over squares of `compression` x `compression` pixels, one for each latent cell.

    Args:
        loss_map: The picture of the loss map, with the geometry that decides the size to which it is resized.
        compression: `CodecSpec.compression`, the side of one latent cell in pixels.

    Returns:
        A tensor [h, w] in float32, from 0 (black: the loss does not count) to 1 (white).

    Raises:
        DataError: The picture cannot be used, or a side of the resized picture is no multiple of `compression`.
    """
    grey = open_loss_map(loss_map)  # [H, W]
    height, width = grey.shape
    if height % compression or width % compression:
        raise DataError(
            f"{loss_map.picture.origin}: a loss map of {width} x {height} pixels has no whole latent places of "
            f"{compression} x {compression}",
            "This is a bug in a recipe: its geometry must fit the codec.",
        )
    return avg_pool2d(grey[None], compression)[0]


def encode_examples(
    inputs: Sequence[ExampleInputs], ids: Sequence[str], parts: Parts, *, batch_size: int = 8
) -> list[Example]:
    """Encode the inputs of records, and return one example for each of them, in order.

    Args:
        inputs: For each example, the pictures and prompts that the recipe wants encoded.
        ids: The id of each example.
        parts: The components of the model; encoder and codec must be loaded.
        batch_size: The most pictures, and the most prompts, that are encoded together.

    Raises:
        DataError: A picture cannot be used; the message names it.
        NumericsError: The encoder or the codec returns values that are not finite.
    """
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
            loss_map=None if one.loss_map is None else encode_loss_map(one.loss_map, compression),
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
    """Make an example of tensors that were encoded separately.

    A loss map of another size than the target, but of the same proportions, is resized to it.

    Raises:
        DataError: The loss map has other proportions, in latent cells, than the latents of the target.
    """
    if loss_map is not None and loss_map.shape != target.shape[-2:]:
        (height, width), (own_height, own_width) = target.shape[-2:], loss_map.shape
        apart = (height * own_width) / (width * own_height)
        if max(apart, 1 / apart) > _ASPECT:
            raise DataError(
                f"example {id}: its loss map covers {tuple(loss_map.shape)} latent places, its target "
                f"{tuple(target.shape[-2:])}",
                "A loss map has the proportions of its target picture.",
            )
        resized = interpolate(loss_map[None, None], (height, width), mode="bilinear", antialias=True)
        loss_map = resized[0, 0].clamp(0, 1)
    return Example(
        id=id,
        target=target,
        references=references,
        conditioning=conditioning,
        unconditional=unconditional,
        loss_map=loss_map,
    )


def windows(count: int, batch_size: int) -> list[range]:
    """Split the numbers from 0 to `count` - 1 into windows: runs of consecutive inputs that are opened together.

    Batches are made only of inputs of one window. The windows depend on `count` and `batch_size` alone, so that a cache
    whose build was interrupted and continued holds the same bits as one that was built without a pause.
    """
    size = WINDOW * batch_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _groups(indices: Sequence[int], shapes: Mapping[int, Hashable], batch_size: int) -> list[list[int]]:
    """Group indices by shape, at most `batch_size` in a group, in the order in which shapes first come."""
    alike: dict[Hashable, list[int]] = {}
    for index in indices:
        alike.setdefault(shapes[index], []).append(index)
    return [members[i : i + batch_size] for members in alike.values() for i in range(0, len(members), batch_size)]


def _of_like_length(ordered: Sequence[int], lengths: Mapping[int, int]) -> list[list[int]]:
    """Split indices that are ordered by the lengths of their prompts where a prompt is much longer than the first one.

    An encoder that pads makes every prompt of a batch as long as the longest. With one caption of a book's page beside
    seven short ones, that would be eight pages. Captions of ordinary lengths are never split.
    """
    parts: list[list[int]] = []
    for index in ordered:
        if not parts or lengths[index] > _MUCH_LONGER * max(lengths[parts[-1][0]], _ORDINARY):
            parts.append([])
        parts[-1].append(index)
    return parts


def _require_finite(encoded: Tensor, names: Sequence[str]) -> None:
    if not torch.isfinite(encoded).all():
        raise NumericsError(
            f"encoding gave values that are not finite, for one of: {', '.join(names)}",
            "Encode in float32 or bfloat16 (dtype), or leave the sample out.",
        )


def _all_there(results: Sequence[_T | None]) -> list[_T]:
    return [result for result in results if result is not None]
