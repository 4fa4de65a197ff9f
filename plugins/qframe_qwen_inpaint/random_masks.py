"""Draws random masks, for training an inpainting family on pictures that have no mask."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

# Of a box's sides, in sides of the picture.
_BOX = (0.25, 0.75)
# Of free-form strokes, after the mask generator of Yu et al. 2019 (arXiv:1806.03589), appendix: strokes, turns of each,
# width in diagonals of the picture, and the angle from a stroke's heading with its range.
_STROKES = (1, 4)
_TURNS = (4, 12)
_WIDTH = (0.04, 0.12)
_ANGLE = 2 * math.pi / 5
_ANGLE_RANGE = 2 * math.pi / 15


def random_mask(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a random mask [height, width] of 0 and 1, where 1 is repainted.

    The mask shows a box or some strokes of a brush, both with probability 1/2. It is never 0 everywhere, and depends
    only on the arguments and the state of the generator.
    """
    drawn = Image.new("L", (width, height))
    painted = _box if _uniform(generator) < 0.5 else _strokes
    painted(ImageDraw.Draw(drawn), height, width, generator)
    mask = torch.from_numpy(np.array(drawn)).float() / 255
    return mask if mask.any() else torch.ones(height, width)


def _box(draw: ImageDraw.ImageDraw, height: int, width: int, generator: torch.Generator) -> None:
    tall = max(round(_uniform(generator, *_BOX) * height), 1)
    wide = max(round(_uniform(generator, *_BOX) * width), 1)
    top = round(_uniform(generator, 0, height - tall))
    left = round(_uniform(generator, 0, width - wide))
    draw.rectangle((left, top, left + wide - 1, top + tall - 1), fill=255)


def _strokes(draw: ImageDraw.ImageDraw, height: int, width: int, generator: torch.Generator) -> None:
    diagonal = math.hypot(height, width)
    for _ in range(_integer(generator, *_STROKES)):
        x, y = _uniform(generator, 0, width), _uniform(generator, 0, height)
        brush = max(_uniform(generator, *_WIDTH) * diagonal, 1.0)
        way, heading = [(x, y)], _uniform(generator, 0, 2 * math.pi)
        for turn in range(_integer(generator, *_TURNS)):
            angle = _uniform(generator, _ANGLE - _ANGLE_RANGE, _ANGLE + _ANGLE_RANGE)
            length = _uniform(generator, 0, diagonal / 4)
            angle = heading + (angle if turn % 2 else -angle)  # back and forth, as a hand does
            x = min(max(x + length * math.cos(angle), 0), width)
            y = min(max(y + length * math.sin(angle), 0), height)
            way.append((x, y))
        draw.line(way, fill=255, width=round(brush))
        for x, y in way:
            draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=255)


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
