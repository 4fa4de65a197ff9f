"""Strict success: does a picture show the scene it was asked to show?

A picture passes when all of this holds:

- background: its median is within 40/255 of the wanted colour in every channel, and more than 95 % of the pixels
  that should be background are within 40/255, 85 % in every single cell (no ghost of a small figure);
- for every figure: the median colour inside is within 40/255; among all (shape, size, place) templates of the canvas
  the wanted one fits best; the outline's intersection over union with the wanted one is at least 0.75;
- a dot, where wanted, is white within 40/255 and overlaps its template by at least a half; where none is wanted,
  the middle of the figure has the figure's colour.
"""

import functools
import math
from collections.abc import Sequence

import attrs
import numpy as np
from PIL import Image

from qframe_shapes import world
from qframe_shapes.world import CELL, Canvas, Figure, Scene

Colour = Sequence[float] | np.ndarray

COLOUR_TOLERANCE = 40
BACKGROUND_SHARE = 0.95
CELL_BACKGROUND_SHARE = 0.85
OUTLINE_IOU = 0.75
DOT_IOU = 0.5

CRITERIA = ("size", "background", "clean", "colour", "shape", "scale", "place", "outline", "dot")


@attrs.frozen
class Verdict:
    """The outcome of one comparison. failed: the criteria that do not hold, in the order of ``CRITERIA``.

    ``size`` is the picture's size in pixels, ``clean`` the share of right background pixels, ``scale`` the figure's
    size.
    """

    failed: tuple[str, ...] = ()

    @property
    def success(self) -> bool:
        """Whether every criterion holds."""
        return not self.failed

    def __str__(self) -> str:
        return "success" if self.success else "failed: " + ", ".join(self.failed)


def judge(picture: Image.Image, wanted: Scene, described: str | None = None) -> Verdict:
    """Hold a picture against the scene it should show.

    described: look only into the cell at this place (captions that describe one of several figures).
    """
    if picture.size != (wanted.canvas.width, wanted.canvas.height):
        return Verdict(("size",))
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    failed: set[str] = set()
    if described is not None:
        x, y = wanted.canvas.corner(described)
        pixels = _outside_as_wanted(pixels, wanted, x, y)
    failed |= _background_failures(pixels, wanted)
    figures = [figure for figure in wanted.objects if described in (None, figure.place)]
    for figure in figures:
        failed |= _figure_failures(pixels, wanted, figure)
    return Verdict(tuple(name for name in CRITERIA if name in failed))


def _outside_as_wanted(pixels: np.ndarray, wanted: Scene, x: int, y: int) -> np.ndarray:
    """The wanted picture with the cell at (x, y) taken from ``pixels``."""
    result = world.render_array(wanted).astype(np.float32)
    result[y : y + CELL, x : x + CELL] = pixels[y : y + CELL, x : x + CELL]
    return result


def _background_failures(pixels: np.ndarray, wanted: Scene) -> set[str]:
    colour = world.PALETTE[wanted.background]
    region = pixels[~_touched(wanted)]
    failed = set()
    if not _near(np.median(region, axis=0), colour):
        failed.add("background")
    if _near_pixels(region, colour).mean() <= BACKGROUND_SHARE or _ghost(pixels, wanted):
        failed.add("clean")
    return failed


def _ghost(pixels: np.ndarray, wanted: Scene) -> bool:
    """Whether some cell's background is too dirty: what is left of a small figure can hide in 5 % of a canvas."""
    free = ~_grown(_touched(wanted), 2)  # a soft outline is the outline's affair
    right = _near_pixels(pixels, world.PALETTE[wanted.background])
    for place in wanted.canvas.places:
        x, y = wanted.canvas.corner(place)
        region = right[y : y + CELL, x : x + CELL][free[y : y + CELL, x : x + CELL]]
        if region.size >= CELL * CELL // 4 and region.mean() <= CELL_BACKGROUND_SHARE:
            return True
    return False


def _grown(region: np.ndarray, pixels: int) -> np.ndarray:
    """The region [H, W] bool and everything within ``pixels`` of it, counted along rows and columns."""
    for _ in range(pixels):
        padded = np.pad(region, 1)
        region = region | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return region


def _figure_failures(pixels: np.ndarray, wanted: Scene, figure: Figure) -> set[str]:
    canvas = wanted.canvas
    failed = set()
    x, y = canvas.corner(figure.place)
    cell = pixels[y : y + CELL, x : x + CELL]
    inside = world.shape_coverage(figure.shape, figure.size) > 0.999
    dot = world.dot_coverage(figure.size)
    if not _near(np.median(cell[inside & (dot == 0)], axis=0), world.rgb(figure.colour)):
        failed.add("colour")
    if _dot_fails(cell, figure, wanted.background, dot):
        failed.add("dot")
    others = [other for other in wanted.objects if other is not figure]
    foreground = _foreground(pixels, wanted, figure)
    for other in others:  # each figure is classified alone
        ox, oy = canvas.corner(other.place)
        foreground[oy : oy + CELL, ox : ox + CELL] = False
    overlaps = {key: _iou(foreground, template) for key, template in _templates(canvas).items()}
    best = max(overlaps, key=lambda key: overlaps[key])
    wanted_key = (figure.shape, figure.size, figure.place)
    failed |= {name for name, a, b in zip(("shape", "scale", "place"), best, wanted_key, strict=True) if a != b}
    if overlaps[wanted_key] < OUTLINE_IOU:
        failed.add("outline")
    return failed


def _foreground(pixels: np.ndarray, wanted: Scene, figure: Figure) -> np.ndarray:
    """Pixels [H, W] that are nearer to the figure's colour than to the background's; a wanted dot is filled in."""
    foreground = _nearer(pixels, world.rgb(figure.colour), world.PALETTE[wanted.background])
    if figure.dotted:
        x, y = wanted.canvas.corner(figure.place)
        foreground[y : y + CELL, x : x + CELL] |= world.dot_coverage(figure.size) > 0
    return foreground


def _dot_fails(cell: np.ndarray, figure: Figure, background: str, coverage: np.ndarray) -> bool:
    middle = np.median(cell[coverage > 0.999], axis=0)
    if not figure.dotted:
        return not _near(middle, world.rgb(figure.colour))
    if not _near(middle, world.PALETTE[world.DOT_COLOUR]):
        return True
    inside = world.shape_coverage(figure.shape, figure.size) > 0.5
    nearer_white = _nearer(cell, world.PALETTE[world.DOT_COLOUR], world.rgb(figure.colour))
    return _iou(nearer_white & inside, coverage > 0.5) < DOT_IOU


def _touched(scene: Scene) -> np.ndarray:
    """Pixels [H, W] that some figure covers, if only in part."""
    touched = np.zeros((scene.canvas.height, scene.canvas.width), dtype=bool)
    for figure in scene.objects:
        x, y = scene.canvas.corner(figure.place)
        touched[y : y + CELL, x : x + CELL] |= world.shape_coverage(figure.shape, figure.size) > 0
    return touched


@functools.cache
def _templates(canvas: Canvas) -> dict[tuple[str, str, str], np.ndarray]:
    """Outline [H, W] bool of every (shape, size, place) on a canvas."""
    templates = {}
    for place in canvas.places:
        x, y = canvas.corner(place)
        for shape in world.SHAPES:
            for size in world.SIZES:
                outline = np.zeros((canvas.height, canvas.width), dtype=bool)
                outline[y : y + CELL, x : x + CELL] = world.shape_coverage(shape, size) > 0.5
                templates[shape, size, place] = outline
    return templates


def _near(colour: np.ndarray, wanted: Colour) -> bool:
    return bool(_near_pixels(colour, wanted))


def _near_pixels(pixels: np.ndarray, wanted: Colour) -> np.ndarray:
    near: np.ndarray = (np.abs(pixels - np.array(wanted, dtype=np.float32)) <= COLOUR_TOLERANCE).all(axis=-1)
    return near


def _nearer(pixels: np.ndarray, colour: Colour, than: Colour) -> np.ndarray:
    """Pixels [..., 3] that are nearer to ``colour`` than to the other one: [...] bool."""
    one, other = (np.square(pixels - np.array(c, dtype=np.float32)).sum(axis=-1) for c in (colour, than))
    nearer: np.ndarray = one < other
    return nearer


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two RGB pictures of one size; infinite where they are equal.

    ValueError if the sizes differ.
    """
    if picture.size != reference.size:
        raise ValueError(f"pictures of different sizes: {picture.size} and {reference.size}")
    a, b = (np.asarray(p.convert("RGB"), dtype=np.float64) for p in (picture, reference))
    error = np.square(a - b).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf
