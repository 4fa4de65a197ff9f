"""Decide strictly whether a picture shows the scene that it should show.

A picture passes if it has the size of the wanted scene and all of the following holds:

- Background: its median colour is within 40/255 of the wanted colour in every channel. Of the pixels that should be
  background, more than 95 % are within 40/255 of the wanted colour. In each single cell it is more than 85 %, so that
  the faint remains of a small figure are noticed.
- Every figure: its median colour is within 40/255 of the wanted colour. Of all templates (shape, size and place) on the
  canvas, the wanted one fits best. The intersection over union of the outline with the wanted outline is at least 0.75.
- Dot: a wanted dot is white within 40/255, and its intersection over union with its template is at least 0.5. If no dot
  is wanted, the middle of the figure has the colour of the figure.
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
BACKGROUND_FRACTION = 0.95
CELL_BACKGROUND_FRACTION = 0.85
OUTLINE_IOU = 0.75
DOT_IOU = 0.5

CRITERIA = ("size", "background", "clean", "colour", "shape", "scale", "place", "outline", "dot")


@attrs.frozen
class Verdict:
    """The result of comparing one picture with the scene that it should show.

    Attributes:
        failed: The criteria that do not hold, in the order of `CRITERIA`. Three of their names need an explanation:
            `size` is the size of the picture in pixels, `clean` is the fraction of background pixels that are right,
            and `scale` is the size of the figure (small or large).
    """

    failed: tuple[str, ...] = ()

    @property
    def success(self) -> bool:
        """Whether every criterion holds."""
        return not self.failed

    def __str__(self) -> str:
        return "success" if self.success else "failed: " + ", ".join(self.failed)


def judge(picture: Image.Image, wanted: Scene, described: str | None = None) -> Verdict:
    """Compare a picture with the scene that it should show.

    Args:
        picture: The picture to judge.
        wanted: The scene that it should show.
        described: A place. If it is given, only the cell at this place is compared, because the caption describes
            only one of several figures.
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
    """Draw the wanted picture, with the cell whose corner is (x, y) copied from `pixels`."""
    result = world.render_array(wanted).astype(np.float32)
    result[y : y + CELL, x : x + CELL] = pixels[y : y + CELL, x : x + CELL]
    return result


def _background_failures(pixels: np.ndarray, wanted: Scene) -> set[str]:
    colour = world.PALETTE[wanted.background]
    region = pixels[~_touched(wanted)]
    failed = set()
    if not _near(np.median(region, axis=0), colour):
        failed.add("background")
    if _near_pixels(region, colour).mean() <= BACKGROUND_FRACTION or _ghost(pixels, wanted):
        failed.add("clean")
    return failed


def _ghost(pixels: np.ndarray, wanted: Scene) -> bool:
    """Whether the background of some cell has too many wrong pixels.

    The remains of a small figure cover less than 5 % of a canvas, so the criterion for the whole canvas misses them.
    """
    free = ~_grown(_touched(wanted), 2)  # a soft outline is judged by the criterion `outline`, not here
    right = _near_pixels(pixels, world.PALETTE[wanted.background])
    for place in wanted.canvas.places:
        x, y = wanted.canvas.corner(place)
        region = right[y : y + CELL, x : x + CELL][free[y : y + CELL, x : x + CELL]]
        if region.size >= CELL * CELL // 4 and region.mean() <= CELL_BACKGROUND_FRACTION:
            return True
    return False


def _grown(region: np.ndarray, pixels: int) -> np.ndarray:
    """Enlarge a region ([H, W], bool) by all pixels that are at most `pixels` steps away along rows and columns."""
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
    for other in others:  # the cells of the other figures are left out
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
    """The pixels ([H, W], bool) whose colour is nearer to the figure than to the background.

    The pixels of a wanted dot count as nearer to the figure.
    """
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
    """The pixels ([H, W], bool) that some figure covers completely or in part."""
    touched = np.zeros((scene.canvas.height, scene.canvas.width), dtype=bool)
    for figure in scene.objects:
        x, y = scene.canvas.corner(figure.place)
        touched[y : y + CELL, x : x + CELL] |= world.shape_coverage(figure.shape, figure.size) > 0
    return touched


@functools.cache
def _templates(canvas: Canvas) -> dict[tuple[str, str, str], np.ndarray]:
    """The area ([H, W], bool) that each combination of shape, size and place covers on a canvas."""
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
    """For pixels [..., 3], whether each is nearer to `colour` than to the colour `than`: [...], bool."""
    one, other = (np.square(pixels - np.array(c, dtype=np.float32)).sum(axis=-1) for c in (colour, than))
    nearer: np.ndarray = one < other
    return nearer


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in dB between two pictures, compared in RGB; infinite if they are equal.

    Raises:
        ValueError: The pictures have different sizes.
    """
    if picture.size != reference.size:
        raise ValueError(f"pictures of different sizes: {picture.size} and {reference.size}")
    a, b = (np.asarray(p.convert("RGB"), dtype=np.float64) for p in (picture, reference))
    error = np.square(a - b).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf
