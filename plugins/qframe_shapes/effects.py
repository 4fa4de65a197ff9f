"""Do guidance and negative prompts push in the right direction? Measured where a prompt leaves something open.

Whole captions succeed without guidance, so these measurements use poorer ones, which the model was never shown:

- *guidance*: the prompt names colour and shape alone ("a red circle"). Share of pictures that show one clean figure of
  that colour and shape, without guidance and with it.
- *negative prompts*: the caption leaves the colour out, and each picture shows some colour. Sampled again from the same
  noise with that very colour in the negative prompt, it should change; with another colour there, it should stay.
"""

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from qframe_shapes import metrics, tasks, world
from qframe_shapes.evaluate import Sample, SampleRequest
from qframe_shapes.sampling import qframe_sampler

GUIDANCE = 3.0
_BATCH = 32
_SEED_OFFSET = 2_000_003


@attrs.frozen(kw_only=True)
class Effects:
    """Shares from 0 to 1, of ``count`` pictures each.

    matches_*: of "a red circle" with the right colour and shape. kept_*: of pictures whose open colour is still the
    same with a negative prompt that names this colour, or another one.
    """

    count: int
    scale: float
    matches_without_guidance: float
    matches_with_guidance: float
    kept_when_named: float
    kept_when_another_is_named: float


def measure_effects(
    model: Path, *, steps: int = 16, count: int = 100, seed: int = 0, scale: float = GUIDANCE
) -> Effects:
    """Measure both on the main canvas, by text to image."""
    sample = qframe_sampler(model, steps=steps, true_cfg_scale=scale)
    matches = [_matches(sample, count, seed, negative) for negative in (None, " ")]
    named, another = _kept(sample, count, seed)
    return Effects(
        count=count,
        scale=scale,
        matches_without_guidance=matches[0],
        matches_with_guidance=matches[1],
        kept_when_named=named,
        kept_when_another_is_named=another,
    )


def _matches(sample: Sample, count: int, seed: int, negative: str | None) -> float:
    figures = [_figure(seed, i) for i in range(count)]
    shown = _shown(sample, [f"a {figure.colour} {figure.shape}" for figure in figures], [negative] * count, seed)
    right = [
        scene is not None and (scene.objects[0].colour, scene.objects[0].shape) == (figure.colour, figure.shape)
        for figure, scene in zip(figures, shown, strict=True)
    ]
    return sum(right) / count


def _kept(sample: Sample, count: int, seed: int) -> tuple[float, float]:
    """Shares of colours kept (when named, when another is named) in the negative prompt."""
    figures = [_figure(seed, i) for i in range(count)]

    def captions(colours: Sequence[str]) -> list[str]:
        words = [f"{figure.size} {colour} {figure.shape}" for figure, colour in zip(figures, colours, strict=True)]
        return [
            f"a {' '.join(phrase.split())} {tasks.PLACE_WORDS[figure.place]} on a grey background"
            for phrase, figure in zip(words, figures, strict=True)
        ]

    prompts = captions([""] * count)
    first = _colours(_shown(sample, prompts, [None] * count, seed))
    others = [
        world.choose(world.sample_rng(seed + _SEED_OFFSET, i), world.LEARNED_COLOURS, but=(colour,))
        for i, colour in enumerate(first)
    ]
    kept = []
    for named in (first, others):
        now = _colours(_shown(sample, prompts, captions(named), seed))
        clean = [(a, b) for a, b in zip(first, now, strict=True) if a]
        kept.append(sum(a == b for a, b in clean) / max(len(clean), 1))
    return kept[0], kept[1]


def _figure(seed: int, index: int) -> world.Figure:
    rng: np.random.Generator = world.sample_rng(seed + _SEED_OFFSET, index)
    return world.random_figure(rng, world.MAIN_CANVAS, "grey")


def _colours(scenes: Sequence[world.Scene | None]) -> list[str]:
    return ["" if scene is None else scene.objects[0].colour for scene in scenes]


def _shown(
    sample: Sample, prompts: Sequence[str], negatives: Sequence[str | None], seed: int
) -> list[world.Scene | None]:
    requests = [
        SampleRequest(
            operation="text-to-image",
            prompt=prompt,
            width=world.MAIN_CANVAS.width,
            height=world.MAIN_CANVAS.height,
            seed=seed + i,
            negative_prompt=negative,
        )
        for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True))
    ]
    return [
        metrics.recognise(picture)
        for start in range(0, len(requests), _BATCH)
        for picture in sample(requests[start : start + _BATCH])
    ]
