"""Latents of a request as tokens: their grid, the initial noise, the references, and the way back to pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qframe.diffusion.flow import draw_noise
from qframe.diffusion.packing import pack_latents, pack_pictures, unpack_pictures
from qframe.errors import ConfigError
from qframe.interfaces import Grid, LatentCodec, PackedSequence, Parts, Request, Settled
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import to_pixels
from qframe.sample.per_prompt import broadcast, picture_count, repeat_each


def target_grid(request: Request, size: Size, parts: Parts) -> Grid:
    """The token grid of a request's pictures, which all have `size` (height, width in pixels).

    Raises:
        ConfigError: `request.latents` do not have the shape that this asks for.
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
    """Tokens at sigma 1, drawn as diffusers draws them, on the device and in the dtype of `like`.

    The latents of the request, dense [B, Z, h, w] or packed [B, L, C], take the place of the draw where they are given.
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
    """Tokens of the references of every picture made: the mode of the codec's posterior. None where there are none.

    A set of references that serves all prompts is encoded once.
    """
    if not any(settled.references):
        return None
    request, codec = settled.request, parts.codec
    latents = [[codec.encode(to_pixels(image)[None])[0] for image in one] for one in settled.references]
    each = repeat_each(broadcast(latents, request.prompt_count, "image"), request.num_images_per_prompt)
    return pack_pictures(each, parts.denoiser_spec.patch)


def decoder(codec: LatentCodec, start: PackedSequence, patch: int) -> Callable[[Tensor], list[Tensor]]:
    """The `decode` of a plan that starts from `start`: final tokens [N, C] to one picture [C, H, W] per sample.

    Pictures have values in [-1, 1].
    """
    grids = start.grids  # not `start`, whose noise would stay in memory until the pictures are decoded

    def decode(tokens: Tensor) -> list[Tensor]:
        latents = [latents for (latents,) in unpack_pictures(PackedSequence(tokens, grids), patch)]
        if len({tuple(one.shape) for one in latents}) == 1:
            return list(codec.decode(torch.stack(latents)))
        return [codec.decode(one[None])[0] for one in latents]

    return decode


def _latent_shapes(count: int, grid: Grid, parts: Parts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the latents of `count` pictures: dense [B, Z, h, w], and packed [B, L, C]."""
    _, rows, columns = grid
    patch = parts.denoiser_spec.patch
    return (
        (count, parts.codec_spec.channels, rows * patch, columns * patch),
        (count, rows * columns, parts.denoiser_spec.token_channels),
    )
