"""Converts the masks that a user paints, in pixels, into the factors that latents are mixed by.

White is 1 and is repainted; black is 0 and is kept.
"""

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
from qframe.sample.per_prompt import broadcast
from qframe.sample.request_pictures import PictureLike, load_grey

Edges = Literal["hard", "soft"]
EDGES: tuple[Edges, ...] = get_args(Edges)


def open_masks(values: Sequence[PictureLike], prompts: int) -> list[Image.Image]:
    """Open the masks of a request as grey pictures.

    Raises:
        ConfigError: There is neither one mask for all prompts nor one mask per prompt.
        DataError: A mask cannot be opened; the message names it.
    """
    broadcast(values, prompts, "mask_image")
    return [load_grey(value, "mask_image" if len(values) == 1 else f"mask_image {i}") for i, value in enumerate(values)]


def latent_mask(mask: Image.Image, edges: Edges, compression: int) -> Tensor:
    """Convert a grey picture to a mask [h, w] of the latents, from 0 to 1.

    Args:
        mask: The grey picture, at the size of the result.
        edges: "hard" makes each latent position 0 or 1, depending on the upper left one of its pixels, as in diffusers.
            "soft" gives each latent position the average of its pixels.
        compression: How many pixels per side belong to a latent position.

    Raises:
        ConfigError: The mask is 0 everywhere, so nothing would be repainted.
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
            "Paint white what is to be repainted."
            if blank
            else "Paint more, or give padding_mask_crop or soft mask_edges.",
        )
    return found


def mask_tokens(masks: Sequence[Tensor], parts: Parts) -> Tensor:
    """Convert the masks of the latents, [h, w] for each result, into factors [N, C] for the channels of all tokens."""
    dense = torch.stack(list(masks))[:, None].expand(-1, parts.codec_spec.channels, -1, -1)  # [B, Z, h, w]
    return pack_latents(dense, parts.denoiser_spec.patch).flatten(0, 1)
