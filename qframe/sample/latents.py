"""Makes the tokens of a request (grid, initial noise, references), and decodes final tokens to pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qframe.diffusion.flow import draw_noise
from qframe.diffusion.packing import pack_latents, pack_pictures, unpack_pictures
from qframe.errors import ConfigError
from qframe.interfaces import Grid, LatentCodec, PackedSequence, Parts, Request, Settled
from qframe.pictures.channels import with_channels
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import to_pixels
from qframe.sample.per_prompt import broadcast, picture_count, repeat_each


def target_grid(request: Request, size: Size, parts: Parts) -> Grid:
    """Return the token grid of a request's pictures, which all have `size` (height, width in pixels).

    Raises:
        ConfigError: `request.latents` are given, and do not have the shape that belongs to this size.
    """
    cell = parts.multiple
    grid = (1, size[0] // cell, size[1] // cell)
    if request.latents is not None:
        shapes = _latent_shapes(picture_count(request), grid, parts)
        if tuple(request.latents.shape) not in shapes:
            raise ConfigError(
                f"latents have shape {tuple(request.latents.shape)}, expected {shapes[0]}, or {shapes[1]} as tokens",
                "Give latents of the size asked for, or leave them out.",
            )
    return grid


def initial_noise(settled: Settled, parts: Parts, *, like: Tensor) -> PackedSequence:
    """Return the tokens of pure noise that a run starts from, on the device and in the dtype of `like`.

    If the request gives latents, dense [B, Z, h, w] or packed [B, L, C], these are the noise. Else the noise is
    drawn as diffusers draws it.
    """
    request, grid = settled.request, settled.grid
    count, patch = picture_count(request), parts.denoiser_spec.patch
    if request.latents is None:
        dense, _ = _latent_shapes(count, grid, parts)
        latents = draw_noise(dense, request.generator, device=like.device, dtype=like.dtype)
    else:
        latents = request.latents.to(like)
    tokens = pack_latents(latents, patch) if latents.ndim == 4 else latents
    return PackedSequence(tokens.reshape(-1, tokens.shape[-1]), ((grid,),) * count)


def reference_tokens(settled: Settled, parts: Parts) -> PackedSequence | None:
    """Encode the references of every picture to be made to tokens; return None if there are no references.

    The latents are the mode of the codec's posterior. A set of references that all prompts share is encoded once.
    """
    if not any(settled.references):
        return None
    request, codec = settled.request, parts.codec
    channels = parts.codec_spec.pixel_channels
    latents = [
        [codec.encode(to_pixels(with_channels(image, channels))[None])[0] for image in one]
        for one in settled.references
    ]
    each = repeat_each(broadcast(latents, request.prompt_count, "image"), request.num_images_per_prompt)
    return pack_pictures(each, parts.denoiser_spec.patch)


def decoder(codec: LatentCodec, start: PackedSequence, patch: int) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that decodes the final tokens [N, C] of a plan to one picture [C, H, W] in [-1, 1] per sample.

    Args:
        codec: The loaded codec.
        start: The tokens that the plan starts from; its grids are those of the final tokens.
        patch: The side of a token's patch in latent pixels.
    """
    grids = start.grids  # not `start`, whose noise would stay in memory until the pictures are decoded

    def decode(tokens: Tensor) -> list[Tensor]:
        latents = [latents for (latents,) in unpack_pictures(PackedSequence(tokens, grids), patch)]
        if len({tuple(one.shape) for one in latents}) == 1:
            return list(codec.decode(torch.stack(latents)))
        return [codec.decode(one[None])[0] for one in latents]

    return decode


def as_latents(latents: Tensor, size: Size | None, parts: Parts) -> Tensor:
    """Return latents [B, Z, h, w] of tokens [B, L, C] of pictures with this size, or of what has this form already.

    Args:
        latents: The latents or the tokens.
        size: Height and width of the pictures in pixels; None where only latents are taken.
        parts: The components, which decide the shapes.

    Raises:
        ConfigError: They have another shape, or the size is not given for tokens.
    """
    channels = parts.codec_spec.channels
    if latents.ndim == 4 and latents.shape[1] == channels:
        return latents
    if size is None:
        raise ConfigError(
            f"latents have shape {tuple(latents.shape)}, expected [B, {channels}, h, w]",
            "For tokens [B, L, C], give height and width of the pictures too.",
        )
    grid = (1, size[0] // parts.multiple, size[1] // parts.multiple)
    dense, packed = _latent_shapes(latents.shape[0], grid, parts)
    if tuple(latents.shape) != packed:
        raise ConfigError(
            f"latents have shape {tuple(latents.shape)}, expected {packed} as tokens of {size[0]} x {size[1]} pixels, "
            f"or {dense}",
            "Give height and width of the call that made them.",
        )
    tokens = PackedSequence(latents.reshape(-1, latents.shape[-1]), ((grid,),) * latents.shape[0])
    return torch.stack([one for (one,) in unpack_pictures(tokens, parts.denoiser_spec.patch)])


def _latent_shapes(count: int, grid: Grid, parts: Parts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the latents of `count` pictures: dense [B, Z, h, w], and packed [B, L, C]."""
    _, rows, columns = grid
    patch = parts.denoiser_spec.patch
    return (
        (count, parts.codec_spec.channels, rows * patch, columns * patch),
        (count, rows * columns, parts.denoiser_spec.token_channels),
    )
