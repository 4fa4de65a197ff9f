"""What can be asked in the small world: captions, edit instructions, masks, and who may see which.

An ``Episode`` is one thing asked and its one right answer. Training episodes contain no held-out pair, no held-out
combination, no purple and no dot; evaluation episodes are drawn from exactly those. An episode is a pure function
of (seed, index) and its settings.
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
"""Painting into a mask: on an empty cell, over a figure, with another figure elsewhere on the canvas."""


@attrs.frozen
class Episode:
    """Something asked, and the scene that answers it.

    source: the picture given along (edits, painting), None for text to image. mask: place whose cell is to be painted.
    described: where two figures are shown and one is described, its place; loss and metric look there only.
    """

    operation: Operation
    prompt: str
    target: Scene
    source: Scene | None = None
    mask: str | None = None
    described: str | None = None

    @property
    def split(self) -> str:
        """``pair`` if either scene has a held-out pair, else ``unseen`` if either is held out, else ``train``."""
        splits = {world.split(scene) for scene in (self.source, self.target) if scene is not None}
        return next(name for name in ("pair", "unseen", "train") if name in splits)

    def weight_picture(self) -> Image.Image:
        """Where the loss counts: 255 in the figures' cells, 85 elsewhere; only the described cell if there is one."""
        if self.described is not None:
            return world.cell_mask(self.target.canvas, [self.described])
        scenes = [scene for scene in (self.source, self.target) if scene is not None]
        places = [figure.place for scene in scenes for figure in scene.objects]
        return world.cell_mask(self.target.canvas, places, INSIDE_WEIGHT, OUTSIDE_WEIGHT)

    def mask_picture(self, grow: int = 0) -> Image.Image:
        """The mask as an 8-bit picture, 255 = repaint: the cell at ``mask``, ``grow`` pixels larger on each side."""
        if self.mask is None:
            raise ValueError(f"a {self.operation} episode has no mask")
        canvas = self.target.canvas
        x, y = canvas.corner(self.mask)
        pixels = np.zeros((canvas.height, canvas.width), dtype=np.uint8)
        pixels[max(y - grow, 0) : y + world.CELL + grow, max(x - grow, 0) : x + world.CELL + grow] = 255
        return Image.fromarray(pixels, "L")


def caption(rng: np.random.Generator, scene: Scene, figure: Figure | None) -> str:
    """Describe one figure of a scene, or the empty scene."""
    if figure is None:
        return world.choose(rng, EMPTY_CAPTIONS).format(background=scene.background)
    template = world.choose(rng, CAPTIONS)
    return template.format(figure=figure.phrase, place=PLACE_WORDS[figure.place], background=scene.background)


def instruction(rng: np.random.Generator, operation: str, scene: Scene, new: str = "") -> str:
    """One of the operation's phrasings, about the scene's one figure."""
    (figure,) = scene.objects
    return world.choose(rng, INSTRUCTIONS[operation]).format(shape=figure.shape, old=figure.colour, new=new)


# --- one maker per operation: (rng, canvas) -> Episode ----------------------------------------------------------


def text_to_image(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """A caption with size, colour, shape, place and background; one in fifty asks for an empty canvas."""
    scene = world.random_scene(rng, canvas, 0 if rng.random() < 0.02 else 1)
    return Episode("text-to-image", caption(rng, scene, scene.objects[0] if scene.objects else None), scene)


def described_figure(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Two figures (one where the first takes the centre of a small canvas), the first described.

    Teaches painting beside what is already there.
    """
    scene = world.random_scene(rng, canvas, 2)
    figure = scene.objects[0]
    return Episode("text-to-image", caption(rng, scene, figure), scene, described=figure.place)


def recolour(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Another colour for the figure."""
    source = world.random_scene(rng, canvas)
    new = world.choose(rng, world.LEARNED_COLOURS, but=(source.objects[0].colour, source.background))
    return Episode("recolour", instruction(rng, "recolour", source, new), source.with_figure(colour=new), source)


def reshape(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Another shape of the same size, colour and place."""
    source = world.random_scene(rng, canvas)
    new = world.choose(rng, world.SHAPES, but=(source.objects[0].shape,))
    return Episode("reshape", instruction(rng, "reshape", source, new), source.with_figure(shape=new), source)


def background(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """Another background."""
    source = world.random_scene(rng, canvas)
    new = world.choose(rng, world.BACKGROUNDS, but=(source.objects[0].colour, source.background))
    return Episode("background", instruction(rng, "background", source, new), source.evolve(background=new), source)


def remove(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """No figure any more."""
    source = world.random_scene(rng, canvas)
    return Episode("remove", instruction(rng, "remove", source), source.evolve(objects=()), source)


def paint(rng: np.random.Generator, canvas: Canvas, situation: str = "empty") -> Episode:
    """Paint a described figure into a masked cell; ``elsewhere`` needs a canvas with room for two cells."""
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
    """The operation left unlearned: a white dot in the middle of the figure."""
    source = world.random_scene(rng, canvas)
    return Episode("dot", instruction(rng, "dot", source), source.with_figure(dotted=True), source)


def recolour_purple(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """The colour left unlearned, as an edit."""
    source = world.random_scene(rng, canvas)
    new = world.UNLEARNED_COLOUR
    return Episode("recolour", instruction(rng, "recolour", source, new), source.with_figure(colour=new), source)


def caption_purple(rng: np.random.Generator, canvas: Canvas) -> Episode:
    """The colour left unlearned, as a caption."""
    scene = world.random_scene(rng, canvas, colours=(world.UNLEARNED_COLOUR,))
    return Episode("text-to-image", caption(rng, scene, scene.objects[0]), scene)


Maker = Callable[[np.random.Generator, Canvas], Episode]
EDIT_MAKERS: Mapping[str, Maker] = {
    "recolour": recolour, "reshape": reshape, "background": background, "remove": remove
}  # fmt: skip


def with_unnamed_colour(rng: np.random.Generator, episode: Episode) -> Episode:
    """An edit of a figure in a colour without a name; an episode that names the figure's colour stays as it is.

    Teaches to carry a colour over as a value: from named colours alone a small model learns the table of the pairs
    of shape and colour it has seen, and re-draws a pair it has not as its nearest neighbour. The colour is far from
    purple, from the backgrounds and from those that are held out with the shapes shown.
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
    """Draw until the episode belongs to the wanted split; ``any`` accepts the first."""
    while True:
        episode = make(rng, canvas)
        if wanted in ("any", episode.split):
            return episode


# --- mixtures --------------------------------------------------------------------------------------------------

EDIT_SHARES = {"recolour": 0.25, "reshape": 0.25, "background": 0.35, "remove": 0.15}
EDIT_SHARE, TEXT_SHARE, MAIN_CANVAS_SHARE = 0.6, 0.3, 0.6
UNNAMED_COLOUR_SHARE = 0.5


def training_episode(seed: int, index: int) -> Episode:
    """The base model's mixture: 60 % edits, 30 % captions, 10 % one of two figures described; 60 % main canvas."""
    rng = world.sample_rng(seed, index)
    draw = rng.random()
    canvases = world.OTHER_CANVASES
    if draw < EDIT_SHARE:
        make = EDIT_MAKERS[str(rng.choice(list(EDIT_SHARES), p=list(EDIT_SHARES.values())))]
    elif draw < EDIT_SHARE + TEXT_SHARE:
        make = text_to_image
    else:
        make = described_figure
        canvases = TWO_CELL_CANVASES
    canvas = world.MAIN_CANVAS
    if rng.random() >= MAIN_CANVAS_SHARE:
        canvas = canvases[int(rng.integers(len(canvases)))]
    episode = accepted(make, rng, canvas, "train")
    return with_unnamed_colour(rng, episode) if rng.random() < UNNAMED_COLOUR_SHARE else episode


TWO_CELL_CANVASES = tuple(
    canvas for canvas in world.OTHER_CANVASES if max(canvas.width, canvas.height) >= 2 * world.CELL
)  # fmt: skip


def lora_episode(seed: int, index: int, *, replay: float = 0.4) -> Episode:
    """The embedded LoRA set: the unlearned operation, with ``replay`` of the base model's mixture, main canvas only."""
    rng = world.sample_rng(seed, index)
    if rng.random() >= replay:
        return accepted(dot, rng, world.MAIN_CANVAS, "train")
    make = EDIT_MAKERS[world.choose(rng, EDITS)]
    return accepted(make, rng, world.MAIN_CANVAS, "train")


def colour_lora_episode(seed: int, index: int, *, replay: float = 0.4) -> Episode:
    """A LoRA set for the unlearned colour: edits to purple, with ``replay`` of the learned edits."""
    rng = world.sample_rng(seed, index)
    make = EDIT_MAKERS[world.choose(rng, EDITS)] if rng.random() < replay else recolour_purple
    return accepted(make, rng, world.MAIN_CANVAS, "train")


def caption_lora_episode(seed: int, index: int, *, replay: float = 0.4) -> Episode:
    """A LoRA set for the unlearned colour without pictures: captions of purple figures, with ``replay`` of others."""
    rng = world.sample_rng(seed, index)
    make = text_to_image if rng.random() < replay else caption_purple
    return accepted(make, rng, world.MAIN_CANVAS, "train")
