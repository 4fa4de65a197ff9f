"""Makes pictures and masks for a comparison when the user gives none."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from qframe.pictures.geometry import Geometry, Size

_PROPORTIONS = (3, 4)


def example_size(geometry: Geometry) -> Size:
    """Return a height and a width in pixels that `geometry` does not keep, so that resizing is compared, too."""
    unit = max(geometry.max_area // (_PROPORTIONS[0] * _PROPORTIONS[1]), 1) ** 0.5
    return round(_PROPORTIONS[0] * unit) + 5, round(_PROPORTIONS[1] * unit) + 3


def example_picture(size: Size, seed: int = 0) -> Image.Image:
    """Return a picture of random colours that change smoothly, so that resizing loses little of it.

    Args:
        size: Height and width in pixels.
        seed: Decides the colours.
    """
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0]
    return Image.fromarray((fine.permute(1, 2, 0) * 255).byte().numpy())


def example_part(size: Size, seed: int = 0) -> Image.Image:
    """Return a mask for inpainting: a grey picture that is white inside an ellipse, and black outside.

    Args:
        size: Height and width in pixels.
        seed: Decides at which of three places the ellipse lies.
    """
    height, width = size
    left, upper = (0.1 + 0.15 * (seed % 3)) * width, (0.3 - 0.1 * (seed % 3)) * height
    part = Image.new("L", (width, height))
    ImageDraw.Draw(part).ellipse((left, upper, left + 0.5 * width, upper + 0.6 * height), fill=255)
    return part
