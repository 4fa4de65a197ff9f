"""Measure whether guidance and negative prompts change the pictures of the embedded model in the right direction.

- Guidance: the success rate at the hardest edits (a new background behind a held-out pair of shape and colour) is
  measured without guidance and with guidance; the negative prompt is `" "`.
- Negative prompts: the caption does not name the colour of its figure. If the negative prompt names a colour, the
  colour of the figure should be further from it than without a negative prompt, and further than with a negative prompt
  that names another colour. All three pictures start from the same noise.
"""

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from qframe_shapes import tasks, world
from qframe_shapes.evaluate import PAIR, Group, Sample, SampleRequest, run_group
from qframe_shapes.sampling import qframe_sampler

GUIDANCE = 3.0
HARDEST = Group("background", PAIR)
_BATCH = 32
_SEED_OFFSET = 2_000_003


@attrs.frozen(kw_only=True)
class Effects:
    """The measured effects of guidance and of negative prompts, on the main canvas.

    Each caption is made for a figure with a drawn colour, but does not name this colour. A distance is the absolute
    difference between the median colour of the sampled figure and the drawn colour, from 0 to 255, averaged over
    channels and samples.

    Attributes:
        count: Number of samples for each measurement.
        scale: The guidance scale.
        success_without_guidance: Success rate without guidance, from 0 to 1.
        success_with_guidance: Success rate with guidance, from 0 to 1.
        distance_without_negative: The distance when there is no negative prompt.
        distance_when_named: The distance when the negative prompt names the drawn colour.
        distance_when_another_is_named: The distance when the negative prompt names another colour.
    """

    count: int
    scale: float
    success_without_guidance: float
    success_with_guidance: float
    distance_without_negative: float
    distance_when_named: float
    distance_when_another_is_named: float


def measure_effects(
    model: Path, *, steps: int = 16, count: int = 100, seed: int = 0, scale: float = GUIDANCE
) -> Effects:
    """Measure the effects of guidance and of negative prompts with qframe's pipelines.

    Args:
        model: The model folder.
        steps: Sampling steps per picture.
        count: Number of samples for each measurement.
        seed: Decides captions and noise.
        scale: The guidance scale.
    """
    sample = qframe_sampler(model, steps=steps, true_cfg_scale=scale)

    def guided(requests: Sequence[SampleRequest]) -> Sequence[Image.Image]:
        return sample([attrs.evolve(request, negative_prompt=" ") for request in requests])

    without, with_guidance = (
        sum(result.verdict.success for result in run_group(one, HARDEST, count=count, seed=seed)) / count
        for one in (sample, guided)
    )
    distances = _distances(sample, [_open_caption(seed, i) for i in range(count)], seed)
    return Effects(
        count=count,
        scale=scale,
        success_without_guidance=without,
        success_with_guidance=with_guidance,
        distance_without_negative=distances[0],
        distance_when_named=distances[1],
        distance_when_another_is_named=distances[2],
    )


@attrs.frozen
class _OpenCaption:
    figure: world.Figure  # the caption does not name its colour; distances are measured from it
    other: str
    background: str

    def text(self, colour: str) -> str:
        words = [word for word in (self.figure.size, colour, self.figure.shape) if word]
        return f"a {' '.join(words)} {tasks.PLACE_WORDS[self.figure.place]} on a {self.background} background"


def _open_caption(seed: int, index: int) -> _OpenCaption:
    rng = world.sample_rng(seed + _SEED_OFFSET, index)
    background = world.choose(rng, ("white", "grey", "black"))
    figure = world.random_figure(rng, world.MAIN_CANVAS, background)
    return _OpenCaption(figure, world.choose(rng, world.LEARNED_COLOURS, but=(figure.colour,)), background)


def _distances(sample: Sample, captions: Sequence[_OpenCaption], seed: int) -> tuple[float, float, float]:
    """The three mean distances of `Effects`: no negative prompt, one with the drawn colour, one with another colour."""
    negatives: list[list[str | None]] = [
        [None for _ in captions],
        [caption.text(caption.figure.colour) for caption in captions],
        [caption.text(caption.other) for caption in captions],
    ]
    first, second, third = (_mean_distance(sample, captions, named, seed) for named in negatives)
    return first, second, third


def _mean_distance(
    sample: Sample, captions: Sequence[_OpenCaption], negatives: Sequence[str | None], seed: int
) -> float:
    requests = [
        SampleRequest(
            operation="text-to-image",
            prompt=caption.text(""),
            width=world.MAIN_CANVAS.width,
            height=world.MAIN_CANVAS.height,
            seed=seed + i,
            negative_prompt=negative,
        )
        for i, (caption, negative) in enumerate(zip(captions, negatives, strict=True))
    ]
    pictures = [
        picture for start in range(0, len(requests), _BATCH) for picture in sample(requests[start : start + _BATCH])
    ]
    return float(np.mean([_distance(np.asarray(p), c.figure) for p, c in zip(pictures, captions, strict=True)]))


def _distance(pixels: np.ndarray, figure: world.Figure) -> float:
    x, y = world.MAIN_CANVAS.corner(figure.place)
    inside = world.shape_coverage(figure.shape, figure.size) > 0.999
    colour = np.median(pixels[y : y + world.CELL, x : x + world.CELL][inside].astype(np.float32), axis=0)
    return float(np.abs(colour - np.array(world.rgb(figure.colour))).mean())
