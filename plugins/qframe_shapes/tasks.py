"""Make the tasks of the small world: captions, edit instructions and masks, each with its right result.

An `Episode` is one such task with the scene that is its only right result. The episodes that the base model is trained
on contain no held-out pair, no held-out combination, no purple and no dot; the episodes of the evaluation each contain
one of them. An episode depends only on a seed, its index and its settings.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import numpy as np
from PIL import Image

from qframe_shapes import world
from qframe_shapes.world import Canvas, Figure, Scene

Operation = Literal["text-to-image", "recolour", "reshape", "background", "remove", "paint", "dot"]
EDITS: tuple[Operation, ...] = ("recolour", "reshape", "background", "remove")
UNLEARNED_OPERATION: Operation = "dot"

Split = Literal["train", "unseen", "pair", "any"]

CAPTIONS = (
    "a {figure} {place} on a {background} background",
    "{place} a {figure} on a {background} background",
    "a {background} background with a {figure} {place}",
)
EMPTY_CAPTIONS = ("an empty {background} background", "a {background} background with nothing on it")
INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "recolour": (
        "make the {shape} {new}",
        "recolour the {old} {shape} to {new}",
        "change the colour of the {shape} to {new}",
        "paint the {shape} {new}",
        "turn the {old} {shape} {new}",
    ),
    "reshape": (
        "turn the {shape} into a {new}",
        "replace the {shape} with a {new}",
        "change the {shape} to a {new}",
        "make the {shape} a {new}",
    ),
    "background": (
        "make the background {new}",
        "change the background to {new}",
        "turn the background {new}",
        "change the colour of the background to {new}",
    ),
    "remove": ("remove the {shape}", "delete the {shape}", "erase the {old} {shape}", "take away the {shape}"),
    "dot": ("put a dot on the {shape}", "add a white dot to the {shape}", "mark the {old} {shape} with a dot"),
}
PLACE_WORDS = {
    place: "in the centre" if place == "centre" else f"at the {place}" for place in world.PLACES
}  # fmt: skip

INSIDE_WEIGHT, OUTSIDE_WEIGHT = 255, 85

PAINT_SITUATIONS = ("empty", "over", "elsewhere")
"""What the picture shows before painting.

With "empty", the picture shows no figure; with "over", a figure lies in the cell that is painted; with "elsewhere", the
only figure lies in another cell.
"""


@attrs.frozen
class Episode:
    """One task for a model (a caption, an edit or a painting), and the scene that is its right result.

    Attributes:
        operation: The kind of task.
        prompt: The caption or instruction.
        target: The scene that the result should show.
        source: The scene of the picture to edit or to paint into; None for text to image.
        mask: For painting only: the place whose cell is repainted.
        described: If the target shows two figures and the caption describes one of them, the place of that figure.
            The loss and the metric then look only at its cell.
    """

    operation: Operation
    prompt: str
    target: Scene
    source: Scene | None = None
    mask: str | None = None
    described: str | None = None

    @property
    def split(self) -> str:
        """The split that the episode belongs to.

        It is `pair` if the source or the target belongs to `pair`, else `unseen` if one of them belongs to `unseen`,
        else `train`.
        """
        splits = {world.split(scene) for scene in (self.source, self.target) if scene is not None}
        return next(name for name in ("pair", "unseen", "train") if name in splits)

    def loss_map(self) -> Image.Image:
        """Draw how much the loss counts at each pixel, as a grey picture.

        The value is 255 in the cells of all figures and 85 elsewhere. If one figure is described, the value is 255 in
        its cell and 0 elsewhere.
        """
        if self.described is not None:
            return world.cell_mask(self.target.canvas, [self.described])
        scenes = [scene for scene in (self.source, self.target) if scene is not None]
        places = [figure.place for scene in scenes for figure in scene.objects]
        return world.cell_mask(self.target.canvas, places, INSIDE_WEIGHT, OUTSIDE_WEIGHT)

    def mask_picture(self, grow: int = 0) -> Image.Image:
        """Draw the mask as an 8-bit grey picture: 255 is repainted, 0 is kept.

        Args:
            grow: By how many pixels the mask is larger than the cell at `mask`, on each side.

        Raises:
            ValueError: The episode has no mask.
        """
        if self.mask is None:
            raise ValueError(f"a {self.operation} episode has no mask")
        canvas = self.target.canvas
        x, y = canvas.corner(self.mask)
        pixels = np.zeros((canvas.height, canvas.width), dtype=np.uint8)
        pixels[max(y - grow, 0) : y + world.CELL + grow, max(x - grow, 0) : x + world.CELL + grow] = 255
        return Image.fromarray(pixels, "L")


def caption(rng: np.random.Generator, scene: Scene, figure: Figure | None) -> str:
    """Write a caption that describes one figure of a scene, or, if `figure` is None, an empty scene."""
    if figure is None:
        return world.choose(rng, EMPTY_CAPTIONS).format(background=scene.background)
    template = world.choose(rng, CAPTIONS)
    return template.format(figure=figure.phrase, place=PLACE_WORDS[figure.place], background=scene.background)


def instruction(rng: np.random.Generator, operation: str, scene: Scene, new: str = "") -> str:
    """Write an edit instruction about the only figure of a scene, in one of the phrasings of the operation.

    Args:
        rng: Chooses the phrasing.
        operation: A key of `INSTRUCTIONS`.
        scene: The scene before the edit.
        new: The new colour, shape or background, if the operation has one.
    """
    (figure,) = scene.objects
    return world.choose(rng, INSTRUCTIONS[operation]).format(shape=figure.shape, old=figure.colour, new=new)


# --- one function per operation: (rng, canvas) -> Episode -------------------------------------------------------


def text_to_image(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw a text-to-image task whose caption names everything in the scene; one in fifty asks for an empty canvas."""
    scene = world.random_scene(rng, canvas, 0 if rng.random() < 0.02 else 1)
    return Episode("text-to-image", caption(rng, scene, scene.objects[0] if scene.objects else None), scene)


def described_figure(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw a text-to-image task whose target shows two figures and whose caption describes the first.

    If a small canvas has no room for a second figure, the target shows only the first. From these tasks the model
    learns to paint a figure next to one that is already there.
    """
    scene = world.random_scene(rng, canvas, 2)
    figure = scene.objects[0]
    return Episode("text-to-image", caption(rng, scene, figure), scene, described=figure.place)


def recolour(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw an edit that gives the figure another colour."""
    source = world.random_scene(rng, canvas)
    new = world.choose(rng, world.LEARNED_COLOURS, but=(source.objects[0].colour, source.background))
    return Episode("recolour", instruction(rng, "recolour", source, new), source.with_figure(colour=new), source)


def reshape(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw an edit that gives the figure another shape and keeps its size, colour and place."""
    source = world.random_scene(rng, canvas)
    new = world.choose(rng, world.SHAPES, but=(source.objects[0].shape,))
    return Episode("reshape", instruction(rng, "reshape", source, new), source.with_figure(shape=new), source)


def background(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw an edit that gives the scene another background."""
    source = world.random_scene(rng, canvas)
    new = world.choose(rng, world.BACKGROUNDS, but=(source.objects[0].colour, source.background))
    return Episode("background", instruction(rng, "background", source, new), source.evolve(background=new), source)


def remove(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw an edit that removes the figure."""
    source = world.random_scene(rng, canvas)
    return Episode("remove", instruction(rng, "remove", source), source.evolve(objects=()), source)


def paint(rng: np.random.Generator, canvas: Canvas, situation: str = "empty") -> Episode:
    """Draw a task that paints the described figure into a masked cell.

    Args:
        rng: Draws the scene and the caption.
        canvas: The size of the picture; for `elsewhere` it needs room for two cells.
        situation: One of `PAINT_SITUATIONS`.
    """
    count = 2 if situation == "elsewhere" else 1
    both = world.random_scene(rng, canvas, count)
    while len(both.objects) < count:
        both = world.random_scene(rng, canvas, count)
    figure = both.objects[0]
    if situation == "elsewhere":
        source, target = both.evolve(objects=both.objects[1:]), both
    else:
        target = both.evolve(objects=(figure,))
        other = world.random_figure(rng, canvas, both.background, places=(figure.place,))
        source = both.evolve(objects=(other,) if situation == "over" else ())
    return Episode("paint", caption(rng, target, figure), target, source, mask=figure.place, described=figure.place)


def dot(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw an edit that puts a white dot in the middle of the figure; the base model never learns this operation."""
    source = world.random_scene(rng, canvas)
    return Episode("dot", instruction(rng, "dot", source), source.with_figure(dotted=True), source)


def recolour_purple(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw an edit that makes the figure purple; the base model never learns this colour."""
    source = world.random_scene(rng, canvas)
    new = world.UNLEARNED_COLOUR
    return Episode("recolour", instruction(rng, "recolour", source, new), source.with_figure(colour=new), source)


def caption_purple(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Draw a text-to-image task with a purple figure; the base model never learns this colour."""
    scene = world.random_scene(rng, canvas, colours=(world.UNLEARNED_COLOUR,))
    return Episode("text-to-image", caption(rng, scene, scene.objects[0]), scene)


Maker = Callable[[np.random.Generator, Canvas], Episode]
EDIT_MAKERS: Mapping[str, Maker] = {
    "recolour": recolour, "reshape": reshape, "background": background, "remove": remove
}  # fmt: skip


def with_unnamed_colour(rng: np.random.Generator, episode: Episode) -> Episode:
    """Replace the colour of an edit's figure by a random colour that has no name.

    From these edits the model learns to copy a colour as a value. If a small model sees only named colours, it learns
    the list of the pairs of shape and colour that it has seen, and draws an unseen pair as the nearest pair of that
    list. The new colour is far from purple, from the backgrounds, and from the colours that are held out for the
    shapes in the scene. An episode without a source, or whose prompt names the colour of the figure, is returned
    unchanged.
    """
    if episode.source is None or episode.source.objects[0].colour in episode.prompt.split():
        return episode
    old = episode.source.objects[0].colour
    scenes = (episode.source, episode.target)
    shapes = {figure.shape for scene in scenes for figure in scene.objects}
    held_out = [colour for shape, colour in sorted(world.HELD_OUT_PAIRS) if shape in shapes]
    backgrounds = [scene.background for scene in scenes]
    new = world.unnamed_colour(rng, unlike=(world.UNLEARNED_COLOUR, *held_out, *backgrounds))

    def recoloured(scene: Scene) -> Scene:
        return scene.with_figure(colour=new) if [figure.colour for figure in scene.objects] == [old] else scene

    return attrs.evolve(episode, source=recoloured(episode.source), target=recoloured(episode.target))


def accepted(make: Maker, rng: np.random.Generator, canvas: Canvas, wanted: Split) -> Episode:
    """Draw episodes until one belongs to the wanted split, and return it.

    Args:
        make: Draws one episode.
        rng: The random numbers for `make`.
        canvas: The size of the picture.
        wanted: The split; `any` accepts the first episode.
    """
    while True:
        episode = make(rng, canvas)
        if wanted in ("any", episode.split):
            return episode


# --- mixtures --------------------------------------------------------------------------------------------------

EDIT_FRACTIONS = {"recolour": 0.25, "reshape": 0.25, "background": 0.35, "remove": 0.15}
EDIT_FRACTION, TEXT_FRACTION, MAIN_CANVAS_FRACTION = 0.6, 0.3, 0.6
UNNAMED_COLOUR_FRACTION = 0.5


def training_episode(seed: int, index: int) -> Episode:
    """Draw the training episode of the base model with this seed and index.

    Of all episodes, 60 % are edits, 30 % are text to image, and 10 % are text to image with a caption that describes
    one of two figures. 60 % of the episodes are on the main canvas.
    """
    rng = world.sample_rng(seed, index)
    draw = rng.random()
    canvases = world.OTHER_CANVASES
    if draw < EDIT_FRACTION:
        make = EDIT_MAKERS[str(rng.choice(list(EDIT_FRACTIONS), p=list(EDIT_FRACTIONS.values())))]
    elif draw < EDIT_FRACTION + TEXT_FRACTION:
        make = text_to_image
    else:
        make = described_figure
        canvases = TWO_CELL_CANVASES
    canvas = world.MAIN_CANVAS
    if rng.random() >= MAIN_CANVAS_FRACTION:
        canvas = canvases[int(rng.integers(len(canvases)))]
    episode = accepted(make, rng, canvas, "train")
    return with_unnamed_colour(rng, episode) if rng.random() < UNNAMED_COLOUR_FRACTION else episode


TWO_CELL_CANVASES = tuple(
    canvas for canvas in world.OTHER_CANVASES if max(canvas.width, canvas.height) >= 2 * world.CELL
)  # fmt: skip


def lora_episode(seed: int, index: int, *, replay: float = 0.4) -> Episode:
    """Draw one episode on the main canvas, for a LoRA that learns to put a dot on a figure.

    Args:
        seed: The seed of the data.
        index: The number of the episode.
        replay: The probability, from 0 to 1, that the episode is an edit that the base model knows already.
    """
    rng = world.sample_rng(seed, index)
    if rng.random() >= replay:
        return accepted(dot, rng, world.MAIN_CANVAS, "train")
    make = EDIT_MAKERS[world.choose(rng, EDITS)]
    return accepted(make, rng, world.MAIN_CANVAS, "train")


def colour_lora_episode(seed: int, index: int, *, replay: float = 0.4) -> Episode:
    """Draw one episode on the main canvas, for a LoRA that learns to make figures purple.

    Args:
        seed: The seed of the data.
        index: The number of the episode.
        replay: The probability, from 0 to 1, that the episode is an edit that the base model knows already.
    """
    rng = world.sample_rng(seed, index)
    make = EDIT_MAKERS[world.choose(rng, EDITS)] if rng.random() < replay else recolour_purple
    return accepted(make, rng, world.MAIN_CANVAS, "train")


def caption_lora_episode(seed: int, index: int, *, replay: float = 0.4) -> Episode:
    """Draw one text-to-image episode on the main canvas, for a LoRA that learns purple figures.

    Args:
        seed: The seed of the data.
        index: The number of the episode.
        replay: The probability, from 0 to 1, that the figure has a colour that the base model knows already.
    """
    rng = world.sample_rng(seed, index)
    make = text_to_image if rng.random() < replay else caption_purple
    return accepted(make, rng, world.MAIN_CANVAS, "train")
