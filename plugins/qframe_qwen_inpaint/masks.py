"""Masks: what a user paints, in pixels, to what the latents are mixed by. White, 1, is repainted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from qframe.diffusion.packing import pack_latents
from qframe.errors import ConfigError
from qframe.interfaces import Parts
from qframe.pictures.pixels import grey_values
from qframe.sample.planning import broadcast
from qframe.sample.request_pictures import PictureLike, load_grey

Edges = Literal["hard", "soft"]
EDGES: tuple[Edges, ...] = get_args(Edges)


def open_masks(values: Sequence[PictureLike], prompts: int) -> list[Image.Image]:
    """Grey pictures, one for all prompts or one per prompt. ConfigError otherwise; DataError names a bad one."""
    broadcast(values, prompts, "mask_image")
    return [load_grey(value, "mask_image" if len(values) == 1 else f"mask_image {i}") for i, value in enumerate(values)]


def latent_mask(mask: Image.Image, edges: Edges, compression: int) -> Tensor:
    """The mask [h, w] in [0, 1] of a grey picture of the output's size.

    hard: white or black, by the pixel at the upper left of each place, as diffusers takes it. soft: each place is as
    white as its pixels are on average. ConfigError if nothing is to be repainted.
    """
    weight = grey_values(mask)  # [H, W]
    if edges == "hard":
        found = (weight >= 0.5).float()[::compression, ::compression]
    else:
        found = avg_pool2d(weight[None], compression)[0]
    if not found.any():
        blank = weight.max() == 0 if edges == "soft" else weight.max() < 0.5
        raise ConfigError(
            "mask_image: nothing to repaint: "
            + (
                "it is black everywhere"
                if blank
                else f"its white covers no place of {compression} x {compression} pixels"
            ),
            "Paint white what is to be made anew."
            if blank
            else "Paint more, or give padding_mask_crop or soft mask_edges.",
        )
    return found


def mask_tokens(masks: Sequence[Tensor], parts: Parts) -> Tensor:
    """Masks [h, w], one per result, as tokens [N, C]: what each channel of each token is mixed by."""
    dense = torch.stack(list(masks))[:, None].expand(-1, parts.codec_spec.channels, -1, -1)  # [B, Z, h, w]
    return pack_latents(dense, parts.denoiser_spec.patch).flatten(0, 1)
