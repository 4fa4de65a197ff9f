"""Measures how far one picture is shifted and zoomed against another. Tests use it to prove that no pixel is moved.

Needs scikit-image (the extra "testing").
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from PIL import Image

_WINDOWS = 3  # along each side: enough to distinguish a zoom from a shift, each large enough to be found again
_UPSAMPLING = 100  # shifts are measured to a hundredth of a pixel
_PASSES = 4  # each leaves about an eighth of what the pass before it left


@attrs.frozen
class Alignment:
    """The shift and zoom of one picture's content against an original picture.

    Attributes:
        shift: How far the middle of the picture has moved (down, right), in pixels.
        zoom: How much the content is stretched (vertically, horizontally); 1 means not at all.
        error: The largest distance, in pixels, between the measured shift of a part of the picture and the shift that
            `shift` and `zoom` give for this part. It is large if the pictures do not have the same content.
    """

    shift: tuple[float, float]
    zoom: tuple[float, float]
    error: float

    def aligned(self, *, pixels: float = 0.05, zoom: float = 1e-3) -> bool:
        """Return whether in both directions the shift is at most `pixels`, and the zoom at most `zoom` away from 1."""
        return max(map(abs, self.shift)) <= pixels and max(abs(one - 1) for one in self.zoom) <= zoom


def alignment(picture: Image.Image, original: Image.Image) -> Alignment:
    """Measure by how much the content of `original` is shifted and zoomed in `picture`.

    Nine parts of both pictures are registered by phase correlation (Guizar-Sicairos et al. 2008, Optics Letters 33,
    156, by scikit-image), and a straight line is fitted to their shifts in each direction. The picture is moved back by
    what was found, and the remaining shift is measured again. The measurement works for shifts and stretches of up to
    a twentieth of a side, in pictures that have detail everywhere.

    Args:
        picture: The picture in which the content may have moved.
        original: The picture with the same content at its right place.

    Raises:
        ValueError: The pictures differ in size, have a side under 24 pixels, or a part has a single colour.
    """
    moved, still = _grey(picture), _grey(original)
    if moved.shape != still.shape:
        raise ValueError(f"pictures of different sizes: {picture.size} and {original.size}")
    if min(still.shape) < 8 * _WINDOWS:
        raise ValueError(f"pictures of {original.size} are too small to be registered")
    if any(np.ptp(one[rows, columns]) < 1 for one in (moved, still) for rows, columns in _parts(still.shape)):
        raise ValueError("a part of a picture is of one colour: nothing in it can be registered")
    found = _registered(moved, still)
    for _ in range(_PASSES):
        if found.aligned(pixels=0, zoom=0):
            return found
        left = _registered(_moved_back(moved, found), still)
        found = Alignment(
            shift=(found.shift[0] + found.zoom[0] * left.shift[0], found.shift[1] + found.zoom[1] * left.shift[1]),
            zoom=(found.zoom[0] * left.zoom[0], found.zoom[1] * left.zoom[1]),
            error=left.error,
        )
    return found


def _registered(moved: Any, still: Any) -> Alignment:
    """Measure once. Shifts come out too small by up to an eighth: both parts fade out at the same places."""
    from skimage.registration import phase_cross_correlation

    centres, shifts = [], []
    for rows, columns in _parts(still.shape):
        shift, _, _ = phase_cross_correlation(
            _faded(still[rows, columns]),
            _faded(moved[rows, columns]),
            upsample_factor=_UPSAMPLING,
            normalization=None,  # smooth pictures have nothing but noise at most frequencies
        )
        centres.append(
            [(part.start + part.stop - side) / 2 for part, side in zip((rows, columns), still.shape, strict=True)]
        )
        shifts.append(-shift)
    return _fitted(np.asarray(centres), np.asarray(shifts))


def _moved_back(moved: Any, found: Alignment) -> Any:
    """Undo the shift and zoom that were found in `moved`."""
    from skimage.transform import AffineTransform, warp

    zoom = np.asarray(found.zoom)
    centre = (np.asarray(moved.shape) - 1) / 2
    offset = centre + found.shift - zoom * centre
    back = AffineTransform(scale=tuple(zoom[::-1]), translation=tuple(offset[::-1]))  # warp takes columns before rows
    return warp(moved, back, order=3, mode="edge", preserve_range=True)


def _fitted(centres: Any, shifts: Any) -> Alignment:
    """Fit, by least squares, shift + (zoom - 1) * distance from the middle to the shifts of the parts."""
    found = []
    left = np.zeros_like(shifts)
    for axis in range(2):
        terms = np.stack([np.ones(len(centres)), centres[:, axis]], axis=1)
        solved, *_ = np.linalg.lstsq(terms, shifts[:, axis], rcond=None)
        left[:, axis] = shifts[:, axis] - terms @ solved
        found.append((float(solved[0]), 1 + float(solved[1])))
    return Alignment(
        shift=(found[0][0], found[1][0]),
        zoom=(found[0][1], found[1][1]),
        error=float(np.linalg.norm(left, axis=1).max()),
    )


def _parts(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    return [(rows, columns) for rows in _windows(shape[0]) for columns in _windows(shape[1])]


def _windows(side: int) -> list[slice]:
    """Return three overlapping stretches of a side, each half as long as the side."""
    length = side // 2
    return [slice(start, start + length) for start in (0, (side - length) // 2, side - length)]


def _grey(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("L"), dtype=np.float64)


def _faded(part: Any) -> Any:
    """Take away the mean, and fade the part out towards its edges, where the two pictures show different content."""
    fade = np.outer(np.hanning(part.shape[0]), np.hanning(part.shape[1]))
    return (part - part.mean()) * fade
