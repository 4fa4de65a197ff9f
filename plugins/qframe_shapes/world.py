"""Describe and draw the small world: coloured shapes on plain backgrounds. This module needs no torch.

The sides of a canvas are multiples of 16 pixels. One token of the transformer covers 16 x 16 pixels (the VAE compresses
8 x, and the transformer packs 2 x 2 latent positions). Every figure lies in a *cell* of 2 x 2 tokens, which is 32 x 32
pixels, and the corner of the cell lies on the token grid. Because of this alignment, a model with only three million
parameters can draw sharp outlines.

Pictures are RGB PIL images. Arrays are `[H, W, 3]` uint8, or `[H, W]` float32 for the covered fraction of each pixel.
Every function depends only on its arguments: sample `i` of seed `s` does not depend on what was drawn before.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from PIL import Image

TOKEN = 16
"""The side of a transformer token in pixels."""

CELL = 2 * TOKEN
"""The side of a figure's cell in pixels."""

SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": 9, "large": 14}
SIZES = tuple(RADII)

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 220, 50),
    "orange": (240, 135, 30),
    "cyan": (50, 200, 220),
    "pink": (245, 130, 190),
    "purple": (140, 40, 170),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "grey": (130, 130, 130),
    "brown": (120, 75, 40),
}
"""Any two colours differ by more than 80 in some channel, so a metric with a tolerance of 40 can tell them apart."""

COLOURS = ("red", "green", "blue", "yellow", "orange", "cyan", "pink", "purple")
UNLEARNED_COLOUR = "purple"
"""The colour that the transformer never sees in training, so that a LoRA can learn it."""

LEARNED_COLOURS = tuple(colour for colour in COLOURS if colour != UNLEARNED_COLOUR)
BACKGROUNDS = ("white", "black", "grey", "brown", "blue", "green", "yellow", "pink")
DOT_COLOUR = "white"

HELD_OUT_PAIRS = frozenset({("circle", "yellow"), ("square", "cyan"), ("triangle", "red"), ("cross", "green")})
"""Pairs of shape and colour that the transformer never sees together in training, in a source or in a target."""

UNSEEN_FRACTION = 0.15
"""The fraction of scenes without a held-out pair that is held out from training too."""

PLACES: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "centre": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
"""The row and the column of each place: 0 is the first, 1 the middle, 2 the last."""

_SUPERSAMPLING = 8
_CROSS_ARM = 0.36
"""Half the width of the arms of a cross, in units of its radius."""
_DOT_RADIUS = 4 / 9
"""The radius of a dot in units of the figure's radius; a dot of this size lies inside every shape."""


@attrs.frozen
class Canvas:
    """The size of a picture in pixels.

    Attributes:
        width: The width, a multiple of 16 from 48 to 96.
        height: The height, a multiple of 16 from 48 to 96.

    Raises:
        ValueError: The width or the height is no such number.
    """

    width: int
    height: int

    def __attrs_post_init__(self) -> None:
        for name, side in (("width", self.width), ("height", self.height)):
            if side % TOKEN or not 3 * TOKEN <= side <= 6 * TOKEN:
                raise ValueError(f"canvas {name} is {side}, wanted a multiple of {TOKEN} from 48 to 96")

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the places on this canvas; a side with an odd number of tokens has no middle place."""
        rows = _axis_indices(self.height)
        columns = _axis_indices(self.width)
        return tuple(name for name, (row, column) in PLACES.items() if row in rows and column in columns)

    def corner(self, place: str) -> tuple[int, int]:
        """Return the top left pixel (x, y) of the cell at a place.

        Raises:
            ValueError: This canvas has no such place.
        """
        if place not in self.places:
            raise ValueError(f"canvas {self} has no place {place!r}; it has {', '.join(self.places)}")
        row, column = PLACES[place]
        return (self.width - CELL) * column // 2, (self.height - CELL) * row // 2


def _axis_indices(side: int) -> tuple[int, ...]:
    return (0, 1, 2) if (side // TOKEN) % 2 == 0 else (0, 2)


MAIN_CANVAS = Canvas(64, 64)
OTHER_CANVASES = tuple(
    Canvas(width, height)
    for width, height in ((48, 48), (96, 96), (96, 48), (48, 96), (80, 64), (64, 80), (96, 64), (64, 96))
)
CANVASES = (MAIN_CANVAS, *OTHER_CANVASES)


def rgb(colour: str) -> tuple[int, int, int]:
    """Return the red, green and blue values, each from 0 to 255, of a colour.

    Args:
        colour: A name in `PALETTE`, or `#rrggbb` for a colour without a name.

    Raises:
        ValueError: The colour is neither of them.
    """
    if colour in PALETTE:
        return PALETTE[colour]
    if not re.fullmatch(r"#[0-9a-f]{6}", colour):
        raise ValueError(f"colour {colour!r}: neither #rrggbb nor one of {', '.join(PALETTE)}")
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _is_colour(instance: object, attribute: object, value: str) -> None:
    rgb(value)


@attrs.frozen
class Figure:
    """One coloured shape in a cell.

    Attributes:
        shape: One of `SHAPES`.
        colour: A name in `PALETTE`, or `#rrggbb`.
        size: `small` or `large`.
        place: The place of the cell; a key of `PLACES`.
        dotted: Whether the figure has a white dot in its middle.
    """

    shape: str = attrs.field(validator=attrs.validators.in_(SHAPES))
    colour: str = attrs.field(validator=_is_colour)
    size: str = attrs.field(validator=attrs.validators.in_(SIZES))
    place: str = attrs.field(validator=attrs.validators.in_(PLACES))
    dotted: bool = False

    @property
    def phrase(self) -> str:
        """The figure in words, without its place: `small red circle`."""
        return f"{self.size} {self.colour} {self.shape}"


@attrs.frozen
class Scene:
    """A description of everything that one picture shows.

    Attributes:
        canvas: The size of the picture.
        background: The colour of the background; a name in `PALETTE`.
        objects: The figures; their cells do not overlap.

    Raises:
        ValueError: The cells of two figures overlap, or the canvas does not have the place of a figure.
    """

    canvas: Canvas
    background: str = attrs.field(validator=attrs.validators.in_(PALETTE))
    objects: tuple[Figure, ...] = ()

    def __attrs_post_init__(self) -> None:
        corners = [self.canvas.corner(figure.place) for figure in self.objects]
        for i, a in enumerate(corners):
            if any(cells_overlap(a, b) for b in corners[:i]):
                raise ValueError(f"the cells of two figures overlap on canvas {self.canvas}: {self.objects}")

    @property
    def key(self) -> str:
        """A text that is the same for equal scenes; its hash decides whether the scene is held out."""
        figures = sorted(
            f"{figure.phrase} at {figure.place}{' dotted' if figure.dotted else ''}" for figure in self.objects
        )
        return f"{self.canvas}|{self.background}|" + "|".join(figures)

    def evolve(self, **changes: Any) -> "Scene":
        """Return a copy of the scene with these attributes of the scene replaced."""
        return attrs.evolve(self, **changes)

    def with_figure(self, **changes: Any) -> "Scene":
        """Return a copy of the scene, which must have exactly one figure, with attributes of that figure replaced."""
        (figure,) = self.objects
        return attrs.evolve(self, objects=(attrs.evolve(figure, **changes),))


def cells_overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Return whether two cells, given by their top left pixels (x, y), have a pixel in common."""
    return abs(a[0] - b[0]) < CELL and abs(a[1] - b[1]) < CELL


# --- drawing ---------------------------------------------------------------------------------------------------


@functools.cache
def shape_coverage(shape: str, size: str) -> np.ndarray:
    """Return the fraction of each pixel of a cell that a shape covers, [32, 32] float32 from 0 to 1, read-only."""
    x, y = _fine_grid(RADII[size])
    inside = {
        "circle": np.hypot(x, y) <= 1,
        "square": np.maximum(np.abs(x), np.abs(y)) <= 1,
        "triangle": (2 * np.abs(x) - 1 <= y) & (y <= 1),
        "cross": (np.minimum(np.abs(x), np.abs(y)) <= _CROSS_ARM) & (np.maximum(np.abs(x), np.abs(y)) <= 1),
    }[shape]
    return _coverage(inside)


@functools.cache
def dot_coverage(size: str) -> np.ndarray:
    """Return the fraction of each pixel of a cell that the dot on a figure of this size covers.

    The array has shape [32, 32], float32 values from 0 to 1, and is read-only.
    """
    x, y = _fine_grid(RADII[size])
    return _coverage(np.hypot(x, y) <= _DOT_RADIUS)


def _fine_grid(radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The x and the y of every sub-pixel of a cell, from its middle and in units of `radius`: two [256, 256] arrays."""
    axis = ((np.arange(CELL * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - CELL / 2) / radius
    x, y = np.meshgrid(axis, axis)
    return x, y


def _coverage(inside: np.ndarray) -> np.ndarray:
    """The average over the sub-pixels of each pixel: [32, 32], float32, read-only."""
    fine = inside.astype(np.float32).reshape(CELL, _SUPERSAMPLING, CELL, _SUPERSAMPLING)
    coverage: np.ndarray = fine.mean(axis=(1, 3), dtype=np.float32)
    coverage.setflags(write=False)
    return coverage


def render_array(scene: Scene) -> np.ndarray:
    """Draw a scene with antialiasing as an array [H, W, 3] of uint8, which is the same on every machine."""
    pixels = np.empty((scene.canvas.height, scene.canvas.width, 3), dtype=np.float32)
    pixels[:] = PALETTE[scene.background]
    for figure in scene.objects:
        x, y = scene.canvas.corner(figure.place)
        cell = pixels[y : y + CELL, x : x + CELL]
        _paint(cell, shape_coverage(figure.shape, figure.size), rgb(figure.colour))
        if figure.dotted:
            _paint(cell, dot_coverage(figure.size), PALETTE[DOT_COLOUR])
    return np.round(pixels).astype(np.uint8)


def _paint(cell: np.ndarray, coverage: np.ndarray, colour: tuple[int, int, int]) -> None:
    cell += coverage[..., None] * (np.array(colour, dtype=np.float32) - cell)


def render(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture."""
    return Image.fromarray(render_array(scene), "RGB")


def cell_mask(canvas: Canvas, places: Sequence[str], inside: int = 255, outside: int = 0) -> Image.Image:
    """Draw a grey picture with the value `inside` (0 to 255) in the cells at `places`, and `outside` elsewhere."""
    mask = np.full((canvas.height, canvas.width), outside, dtype=np.uint8)
    for place in places:
        x, y = canvas.corner(place)
        mask[y : y + CELL, x : x + CELL] = inside
    return Image.fromarray(mask, "L")


# --- splits and sampling ---------------------------------------------------------------------------------------


def unit_hash(text: str) -> float:
    """Hash a text to a number in [0, 1) that is the same on every machine and in every version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def has_held_out_pair(scene: Scene) -> bool:
    """Return whether some figure of the scene has one of the `HELD_OUT_PAIRS` of shape and colour."""
    return any((figure.shape, figure.colour) in HELD_OUT_PAIRS for figure in scene.objects)


def split(scene: Scene) -> str:
    """Return the split that a scene belongs to, which decides whether training may show the scene.

    Two kinds of scenes always belong to `train`: scenes without figures, because there are too few of them to hold some
    out, and scenes with colours that have no name, because no evaluation uses them.

    Returns:
        `pair` if the scene has a held-out pair of shape and colour, `unseen` if this combination of shape, colour,
        size, place and background is held out, else `train`.
    """
    if any(figure.colour not in PALETTE for figure in scene.objects):
        return "train"
    if has_held_out_pair(scene):
        return "pair"
    if scene.objects and unit_hash(scene.key) < UNSEEN_FRACTION:
        return "unseen"
    return "train"


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """Make the random generator for sample `index` of the data with seed `seed`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def choose(rng: np.random.Generator, options: Sequence[str], *, but: Sequence[str] = ()) -> str:
    """Draw one of `options`, all with equal probability, leaving out those in `but`."""
    allowed = [option for option in options if option not in but]
    return allowed[int(rng.integers(len(allowed)))]


def unnamed_colour(rng: np.random.Generator, *, unlike: Sequence[str]) -> str:
    """Draw a random colour, as `#rrggbb`, that differs by more than 80 in some channel from each colour in `unlike`."""
    while True:
        channels = rng.integers(20, 246, size=3)
        if all(np.abs(channels - np.array(PALETTE[name])).max() > 80 for name in unlike):
            return "#" + "".join(f"{int(channel):02x}" for channel in channels)


def random_figure(
    rng: np.random.Generator, canvas: Canvas, background: str, *, colours: Sequence[str] = LEARNED_COLOURS,
    places: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """Draw a random figure whose colour differs from the background.

    Args:
        rng: The random numbers.
        canvas: The size of the picture.
        background: The colour of the background.
        colours: The colours to choose from.
        places: The places to choose from; by default all places of the canvas.
    """
    return Figure(
        shape=choose(rng, SHAPES),
        colour=choose(rng, colours, but=(background,)),
        size=choose(rng, SIZES),
        place=choose(rng, canvas.places if places is None else places),
    )


def random_scene(
    rng: np.random.Generator, canvas: Canvas, count: int = 1, *, colours: Sequence[str] = LEARNED_COLOURS
) -> Scene:
    """Draw a random scene with `count` figures in the given colours, or with fewer if the canvas has no more room."""
    background = choose(rng, [name for name in BACKGROUNDS if set(colours) - {name}])
    figures: list[Figure] = []
    for _ in range(count):
        free = free_places(canvas, figures)
        if not free:
            break
        figures.append(random_figure(rng, canvas, background, colours=colours, places=free))
    return Scene(canvas, background, tuple(figures))


def free_places(canvas: Canvas, figures: Sequence[Figure]) -> tuple[str, ...]:
    """Return the places of a canvas whose cells do not overlap the cell of any of the figures."""
    taken = [canvas.corner(figure.place) for figure in figures]
    return tuple(
        place for place in canvas.places if not any(cells_overlap(canvas.corner(place), corner) for corner in taken)
    )
