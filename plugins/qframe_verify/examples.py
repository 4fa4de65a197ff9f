"""Pictures to verify with where a user gives none: smooth colours, and a part of them."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from qframe.pictures.geometry import Geometry, Size

_PROPORTIONS = (3, 4)


def example_size(geometry: Geometry) -> Size:
    """A height and width that `geometry` does not leave as they are, so that resizing is compared too."""
    unit = max(geometry.max_area // (_PROPORTIONS[0] * _PROPORTIONS[1]), 1) ** 0.5
    return round(_PROPORTIONS[0] * unit) + 5, round(_PROPORTIONS[1] * unit) + 3


def example_picture(size: Size, seed: int = 0) -> Image.Image:
    """Random colours of `size` (height, width), smooth enough to survive resizing."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0]
    return Image.fromarray((fine.permute(1, 2, 0) * 255).byte().numpy())


def example_part(size: Size, seed: int = 0) -> Image.Image:
    """A grey picture of `size`, white in an ellipse that lies elsewhere for each seed."""
    height, width = size
    left, upper = (0.1 + 0.15 * (seed % 3)) * width, (0.3 - 0.1 * (seed % 3)) * height
    part = Image.new("L", (width, height))
    ImageDraw.Draw(part).ellipse((left, upper, left + 0.5 * width, upper + 0.6 * height), fill=255)
    return part
